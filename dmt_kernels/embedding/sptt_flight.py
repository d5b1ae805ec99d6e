"""A batch on the road of two stages, with a tower module between them.

Letters, for a chunk of ``b`` samples: ``R`` members, ``T`` towers, ``D_m`` columns of member ``m``, ``D_r`` of this
one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dmt_kernels.embedding.column_layout import TowerLayout
from dmt_kernels.embedding.flight import Cargo, Flight
from dmt_kernels.embedding.stage import Stage
from dmt_kernels.embedding.tower_step import TowerStep
from dmt_kernels.ops import stage_wait


class SpttFlight(Flight):
    """Tower stage, tower module, peer stage.

    Parameters
    ----------
    cargo : Cargo
        The batch.
    layout : TowerLayout
        Of the own tower.
    place : tuple of int
        ``(t, r)``.
    tower, peer : Stage
        The two stages.
    tower_step : TowerStep
        The tower module in this step.
    out_widths : sequence of int
        ``C_t`` of every tower.
    number : int
        Of the flight: no two draw the same random numbers.
    """

    def __init__(
        self,
        cargo: Cargo,
        *,
        layout: TowerLayout,
        place: tuple[int, int],
        tower: Stage,
        peer: Stage,
        tower_step: TowerStep,
        out_widths: Sequence[int],
        number: int,
    ) -> None:
        super().__init__(cargo, sum(out_widths))
        self.layout, self.tower, self.peer = layout, tower, peer
        self.tower_step, self.out_widths, self.number = tower_step, list(out_widths), number
        self.inputs = tower_step.inputs
        self.members, self.towers = len(layout.members), len(out_widths)
        t, self.member = place
        self.own, self.width = layout.members[self.member], self.out_widths[t]
        self._blocks: list[list[Tensor]] = []  # of every chunk: what arrived from each member, and the kept columns
        self._grads: list[Tensor] = []  # of every chunk: of the tower module's output
        self._tickets: dict[tuple[str, int], int] = {}

    def send(self, chunk: int, pooled: Tensor) -> None:
        """Start the tower stage."""
        by_member = pooled.unflatten(0, (self.members, -1))  # [R, T*b, D_r]
        arriving = self._side_by_side(self.layout.sent_widths)
        if any(self.layout.sent_widths):
            sent = by_member[:, :, : self.own.sent_width].unbind(0)
            self._tickets["tower", chunk] = self.tower.start(sent, arriving)
        self._blocks.append([*arriving, by_member[self.member, :, self.own.sent_width :]])

    def compress(self, chunk: int) -> None:
        """Wait for the tower stage, apply the tower module, start the peer stage."""
        self._wait("tower", chunk)
        compressed = self.tower_step.forward(self._blocks[chunk]).view(self.towers, self.chunk_samples, self.width)
        arriving = self.out[self.rows_of(chunk)].split(self.out_widths, dim=1)
        self._tickets["peer", chunk] = self.peer.start(compressed.unbind(0), arriving)

    def deliver(self, chunk: int) -> None:
        """Wait for the peer stage."""
        self._wait("peer", chunk)

    def send_back(self, chunk: int, grad: Tensor) -> None:
        """Start the peer stage's gradient."""
        arriving = self.out.new_empty(self.towers, self.chunk_samples, self.width)
        self._grads.append(arriving.flatten(0, 1))
        sent = grad.split(self.out_widths, dim=1)
        self._tickets["peer", chunk] = self.peer.start_back(sent, arriving.unbind(0), self._draw(chunk))

    def decompress(self, chunk: int) -> None:
        """Wait for it, go back through the tower module, start the tower stage's gradient."""
        self._wait("peer", chunk)
        grad = self._grads[chunk]
        blocks = self._side_by_side(self.layout.sent_widths)
        kept = self.out.new_empty(self.towers * self.chunk_samples, self.layout.kept_width)
        self.tower_step.backward(chunk, grad, [*blocks, kept])
        arriving = self.pooled_grad(chunk).unflatten(0, (self.members, -1))  # [R, T*b, D_r]
        sent_width = self.own.sent_width
        if any(self.layout.sent_widths):
            out = arriving[:, :, :sent_width].unbind(0)
            self._tickets["tower", chunk] = self.tower.start_back(blocks, out, self._draw(chunk))
        if self.layout.kept_width:  # every replica sees all gradients, to make the same update
            out = arriving[:, :, sent_width:].unbind(0)
            self._tickets["kept", chunk] = self.tower.gather(kept, out)
        self.tower_step.backward_inputs(chunk, grad)

    def collect(self, chunk: int) -> None:
        """Wait for the tower stage's gradient."""
        self._wait("tower", chunk)
        self._wait("kept", chunk)

    def input_grads(self) -> tuple[Tensor | None, ...]:
        """Gradients of the tower module's parameters."""
        self._grads.clear()
        return self.tower_step.input_grads()

    def _wait(self, stage: str, chunk: int) -> None:
        if (ticket := self._tickets.pop((stage, chunk), None)) is not None:
            stage_wait(ticket)

    def _side_by_side(self, widths: Sequence[int]) -> list[Tensor]:
        """One ``[T*b, D_m]`` per member, in one piece of memory: it travels as it lies."""
        rows = self.towers * self.chunk_samples
        pieces = self.out.new_empty(rows * sum(widths)).split([rows * width for width in widths])
        return [piece.view(rows, width) for piece, width in zip(pieces, widths, strict=True)]

    def _draw(self, chunk: int) -> int:
        return self.number * self.chunks + chunk
