"""What rows travel as, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

from dmt_kernels.spec.wire_format import WireFormat


@dataclass(frozen=True)
class Payloads:
    """Payload formats of the exchange's stages, forward and backward.

    Parameters
    ----------
    tower, tower_backward : WireFormat
        Of the tower stage: pooled embeddings, and their gradients.
    peer, peer_backward : WireFormat
        Of the peer stage, and of the one stage of a flat exchange: what crosses hosts.
    stochastic : bool
        Round gradients stochastically instead of to nearest.

    Notes
    -----
    ``fp32`` leaves tensors in their own dtype: float64 tables stay exact.
    """

    tower: WireFormat = WireFormat.FP32
    tower_backward: WireFormat = WireFormat.FP32
    peer: WireFormat = WireFormat.FP32
    peer_backward: WireFormat = WireFormat.FP32
    stochastic: bool = False

    @classmethod
    def of(
        cls, peer: WireFormat | str, tower: WireFormat | str = WireFormat.FP32, *, stochastic: bool = False
    ) -> Payloads:
        """One format for each stage, the same in both directions.

        Raises
        ------
        InputError
            For an unknown format.
        """
        peer, tower = WireFormat(peer), WireFormat(tower)
        return cls(tower, tower, peer, peer, stochastic)
