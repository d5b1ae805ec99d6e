"""A stage of the exchange, as a road uses it: its group, and what rows travel as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dmt_kernels.ops import Ticket, stage_expect, stage_send, stage_start
from dmt_kernels.spec import WireFormat


@dataclass(frozen=True)
class Stage:
    """All-to-all of blocks among the ranks of a group.

    Parameters
    ----------
    group : str
        The process group's name.
    format, backward_format : WireFormat
        Of embeddings and of their gradients; fp32 leaves them in their own dtype.
    seed : int or None
        Gradients are rounded stochastically by it; None: to nearest.
    """

    group: str
    format: WireFormat
    backward_format: WireFormat
    seed: int | None

    @property
    def is_lossy(self) -> bool:
        """Whether embeddings are encoded on their way."""
        return _lossy(self.format) is not None

    def expect(self, out: Sequence[Tensor], own: int) -> Ticket:
        """Say where embeddings are to arrive, from all but this rank: see :func:`~dmt_kernels.ops.stage_expect`."""
        return stage_expect(others(own, out), self.group, _lossy(self.format))

    def send(self, ticket: Ticket, blocks: Sequence[Tensor], own: int) -> None:
        """Send embeddings to all but this rank, encoded already or not."""
        stage_send(ticket, others(own, blocks))

    def start_back(self, blocks: Sequence[Tensor], out: Sequence[Tensor], own: int, step: int) -> Ticket:
        """Start sending gradients to all but this rank; calls with the same `step` draw the same numbers."""
        format = _lossy(self.backward_format)
        return stage_start(others(own, blocks), others(own, out), self.group, format, seed=self.seed, step=step)

    def gather(self, block: Tensor, out: Sequence[Tensor]) -> Ticket:
        """Start sending the same block to all, bit for bit."""
        return stage_start([block] * len(out), out, self.group)


def others(own: int, blocks: Sequence[Tensor]) -> list[Tensor]:
    """Leave out what a rank would send to itself: that stays where it is, unrounded, or is copied by the caller."""
    nothing = blocks[own - 1][:0]  # of a neighbour's dtype: the own block alone may be unencoded
    return [nothing if i == own else block for i, block in enumerate(blocks)]


def _lossy(format: WireFormat) -> WireFormat | None:
    return None if format is WireFormat.FP32 else format
