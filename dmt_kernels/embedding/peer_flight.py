"""The second stage of the road of two, to the peers and back: the same wherever a tower module stands.

Letters, for a chunk of ``b`` samples: ``R`` members, ``T`` towers, ``C_t`` columns of tower ``t``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dmt_kernels.embedding.column_layout import TowerLayout
from dmt_kernels.embedding.flight import Cargo, Flight
from dmt_kernels.embedding.stage import Stage


@dataclass(frozen=True)
class TowerRoad:
    """What all batches of a rank have in common.

    Parameters
    ----------
    layout : TowerLayout
        Of the own tower.
    place : tuple of int
        ``(t, r)``.
    tower, peer : Stage
        The two stages.
    out_widths : list of int
        ``C_t`` of every tower.
    """

    layout: TowerLayout
    place: tuple[int, int]
    tower: Stage
    peer: Stage
    out_widths: list[int]


class PeerFlight(Flight):
    """The peer stage of compressed rows, and that of their gradients.

    Parameters
    ----------
    cargo : Cargo
        The batch.
    road : TowerRoad
        Its way.
    """

    def __init__(self, cargo: Cargo, road: TowerRoad) -> None:
        super().__init__(cargo, sum(road.out_widths))
        self.layout, self.tower, self.peer, self.out_widths = road.layout, road.tower, road.peer, road.out_widths
        self.t, self.member = road.place
        self.members, self.towers = len(self.layout.members), len(self.out_widths)
        self.own, self.width = self.layout.members[self.member], self.out_widths[self.t]
        self._grads: dict[int, Tensor] = {}  # of every chunk: [T*b, C_t], of what the tower has compressed

    def compressed(self, chunk: int) -> Tensor:
        """Memory of what the tower has made of a chunk, ``[T, b, C_t]``."""
        return self.buffers.take(f"compressed {chunk}", self.towers, self.chunk_samples, self.width)

    def expect(self, chunk: int) -> None:
        """Begin the peer stage."""
        self._tickets["peer", chunk] = self.peer.expect(self._arriving(chunk), self.t)

    def send_to_peers(self, chunk: int, compressed: Tensor) -> None:
        """Send ``[T, b, C_t]``; others wait for that, and nobody for the own block."""
        self.peer.send(self._tickets["peer", chunk], compressed.unbind(0), self.t)
        self._arriving(chunk)[self.t].copy_(compressed[self.t])

    def deliver(self, chunk: int) -> None:
        """Wait for the peer stage."""
        self._wait("peer", chunk)

    def send_back(self, chunk: int, grad: Tensor) -> None:
        """Start the peer stage's gradient."""
        arriving = self.returning(chunk)
        self._grads[chunk] = arriving.flatten(0, 1)
        sent = grad.split(self.out_widths, dim=1)
        self._tickets["peer", chunk] = self.peer.start_back(sent, arriving.unbind(0), self.t, self._draw(chunk))
        arriving[self.t].copy_(sent[self.t])

    def returning(self, chunk: int) -> Tensor:
        """Memory of the gradient of a chunk's compressed rows, ``[T, b, C_t]``: where they lay, who have arrived."""
        return self.compressed(chunk)

    def _arriving(self, chunk: int) -> tuple[Tensor, ...]:
        """Where rows of every tower arrive, ``[b, C_t]``."""
        return self.out[self.rows_of(chunk)].split(self.out_widths, dim=1)

    def input_grads(self) -> tuple[Tensor | None, ...]:
        """Gradients of the tower module's parameters."""
        self._grads.clear()
        return ()
