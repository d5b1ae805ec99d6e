"""A batch on the road of two stages, with a tower module at the members between them.

Letters, for a chunk of ``b`` samples: ``R`` members, ``T`` towers, ``D_m`` columns of member ``m``, ``D_r`` of this
one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from dmt_kernels.embedding.flight import Cargo
from dmt_kernels.embedding.peer_flight import PeerFlight, TowerRoad
from dmt_kernels.embedding.tower_step import TowerStep


class SpttFlight(PeerFlight):
    """Tower stage, tower module, peer stage.

    Parameters
    ----------
    cargo : Cargo
        The batch.
    road : TowerRoad
        Its way.
    make_tower_step : callable
        Makes what the tower module does in this step; called when autograd may see it.
    """

    def __init__(self, cargo: Cargo, road: TowerRoad, make_tower_step: Callable[[], TowerStep]) -> None:
        super().__init__(cargo, road)
        self._make_tower_step = make_tower_step
        self._blocks: list[list[Tensor]] = []  # of every chunk: what arrived from each member, and the kept columns

    @cached_property
    def tower_step(self) -> TowerStep:
        """The tower module in this step."""
        return self._make_tower_step()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tower module's parameters, or what was computed of them."""
        return self.tower_step.inputs

    def expect(self, chunk: int) -> None:
        """Begin both stages."""
        super().expect(chunk)
        self._blocks.append(self._side_by_side(f"arrived {chunk}"))
        if any(self.layout.sent_widths):
            self._tickets["tower", chunk] = self.tower.expect(self._blocks[chunk], self.member)

    def lookup(self, chunk: int) -> list[Tensor]:
        """Look up what each member gets, ``[T*b, D_r]``; the kept columns with it."""
        return self.pooled_blocks(chunk, self.tower, self.members, self.member, encodes=not self.layout.kept_width)

    def send(self, chunk: int, looked_up: list[Tensor]) -> None:
        """Send in the tower stage."""
        sent, kept = looked_up, looked_up[self.member][:, self.own.sent_width :]
        if self.layout.kept_width:
            sent = [block[:, : self.own.sent_width] for block in looked_up]
        if any(self.layout.sent_widths):
            self.tower.send(self._tickets["tower", chunk], sent, self.member)
        self._blocks[chunk][self.member] = sent[self.member]
        self._blocks[chunk].append(kept)

    def compress(self, chunk: int) -> None:
        """Wait for the tower stage, apply the tower module, send in the peer stage."""
        self._wait("tower", chunk)
        compressed = self.compressed(chunk)
        self.tower_step.forward(self._blocks[chunk], compressed.flatten(0, 1))
        self.send_to_peers(chunk, compressed)

    def decompress(self, chunk: int) -> None:
        """Wait for the peer stage's gradient, go back through the tower module, start the tower stage's."""
        self._wait("peer", chunk)
        grad = self._grads[chunk]
        sent_width = self.own.sent_width
        arriving = self.pooled_grad(chunk).unflatten(0, (self.members, -1))  # [R, T*b, D_r]
        sent_back = arriving[:, :, :sent_width].unbind(0)
        blocks = self._side_by_side(f"sent back {chunk}")
        blocks[self.member] = sent_back[self.member]
        kept = self.buffers.take(f"kept {chunk}", self.towers * self.chunk_samples, self.layout.kept_width)
        self.tower_step.backward(chunk, grad, [*blocks, kept])
        if any(self.layout.sent_widths):
            ticket = self.tower.start_back(blocks, sent_back, self.member, self._draw(chunk))
            self._tickets["tower", chunk] = ticket
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
        super().input_grads()
        return self.tower_step.input_grads()

    def _side_by_side(self, name: str) -> list[Tensor]:
        """One ``[T*b, D_m]`` per member, in one piece of memory: it travels as it lies."""
        rows, widths = self.towers * self.chunk_samples, self.layout.sent_widths
        pieces = self.buffers.take(name, rows * sum(widths)).split([rows * width for width in widths])
        return [piece.view(rows, width) for piece, width in zip(pieces, widths, strict=True)]
