"""A batch on the flat road: one all-to-all over all ranks. The baseline, and the oracle.

Letters, for a chunk of ``b`` samples: ``W`` ranks in ``T`` towers of ``R``, ``D_g`` columns of rank ``g``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_kernels.embedding.column_layout import TowerLayout
from dmt_kernels.embedding.flight import Cargo, Flight
from dmt_kernels.embedding.stage import Stage


class FlatFlight(Flight):
    """One stage; columns of replicated tables, which their tower holds everywhere, come from the peers.

    Parameters
    ----------
    cargo : Cargo
        The batch.
    layouts : sequence of TowerLayout
        Of all towers.
    place : tuple of int
        ``(t, r)``.
    flat, peer, tower : Stage
        All ranks; and, for replicated tables only, the peers and the own tower.
    """

    def __init__(
        self,
        cargo: Cargo,
        *,
        layouts: Sequence[TowerLayout],
        place: tuple[int, int],
        flat: Stage,
        peer: Stage,
        tower: Stage,
    ) -> None:
        widths = [layout.width for layout in layouts]
        super().__init__(cargo, sum(widths))
        self.layouts, self.flat, self.peer, self.tower = layouts, flat, peer, tower
        self.t, self.r = place
        self.rank = self.t * len(layouts[0].members) + self.r
        self.own = layouts[self.t].members[self.r]
        self.tower_widths = widths
        self.has_sent = any(any(layout.sent_widths) for layout in layouts)
        self.has_kept = any(layout.kept_width for layout in layouts)
        # Then what arrives is what is delivered, column by column.
        self.in_order = not self.has_kept and all(layout.is_side_by_side for layout in layouts)
        self._arrived: dict[int, _Blocks] = {}  # of every chunk that is not delivered
        self._kept_grads: dict[int, Tensor] = {}  # of every chunk, first from the peers, then of the whole tower

    def expect(self, chunk: int) -> None:
        """Begin the stage, and that of the peers for kept columns."""
        arriving = self._blocks_of(self.out[self.rows_of(chunk)])
        if self.has_sent:
            self._tickets["flat", chunk] = self.flat.expect(arriving.sent, self.rank)
        if self.has_kept:
            self._tickets["kept", chunk] = self.peer.expect(arriving.kept, self.t)
        self._arrived[chunk] = arriving

    def lookup(self, chunk: int) -> list[Tensor]:
        """Look up what each rank gets, ``[b, D_r]``; the kept columns with it."""
        return self.pooled_blocks(chunk, self.flat, len(self.block_order), self.rank, encodes=not self.has_kept)

    def send(self, chunk: int, looked_up: list[Tensor]) -> None:
        """Send in the stage, and kept columns to the peers."""
        arriving, sent = self._arrived[chunk], looked_up
        if self.has_kept:
            sent = [block[:, : self.own.sent_width] for block in looked_up]
        if self.has_sent:
            arriving.sent[self.rank].copy_(sent[self.rank])
            self.flat.send(self._tickets["flat", chunk], sent, self.rank)
        if self.has_kept:
            mine = [block[:, self.own.sent_width :] for block in looked_up[self.r :: len(self.layouts[0].members)]]
            arriving.kept[self.t].copy_(mine[self.t])
            self.peer.send(self._tickets["kept", chunk], mine, self.t)

    def compress(self, chunk: int) -> None:
        """Nothing: there is no stage between."""

    def deliver(self, chunk: int) -> None:
        """Wait, and put columns in order."""
        self._wait("flat", chunk)
        self._wait("kept", chunk)
        arrived = self._arrived.pop(chunk)
        if not self.in_order:
            towers = zip(self.layouts, arrived.by_tower, strict=True)
            self.out[self.rows_of(chunk)] = torch.cat([layout.assemble(blocks) for layout, blocks in towers], dim=1)

    def send_back(self, chunk: int, grad: Tensor) -> None:
        """Start the gradients on their way back."""
        leaving = self._blocks_of(grad)
        if not self.in_order:
            towers = zip(self.layouts, grad.split(self.tower_widths, dim=1), leaving.by_tower, strict=True)
            for layout, columns, blocks in towers:
                layout.scatter(columns, blocks)
        draw = self._draw(chunk)
        if self.has_sent:
            out = self._by_rank(self.pooled_grad(chunk))[:, :, : self.own.sent_width].unbind(0)
            out[self.rank].copy_(leaving.sent[self.rank])
            self._tickets["flat", chunk] = self.flat.start_back(leaving.sent, out, self.rank, draw)
        if self.has_kept:
            mine = grad.new_empty(len(self.layouts), self.chunk_samples, self.own.kept_width)
            mine[self.t].copy_(leaving.kept[self.t])
            self._kept_grads[chunk] = mine
            self._tickets["kept", chunk] = self.peer.start_back(leaving.kept, mine.unbind(0), self.t, draw)

    def decompress(self, chunk: int) -> None:
        """Show kept columns' gradients to all replicas, so that they make the same update."""
        self._wait("kept", chunk)
        if self.has_kept:
            mine = self._kept_grads[chunk].flatten(0, 1)  # [T*b, kept_width]
            members = mine.new_empty(len(self.layouts[0].members), *mine.shape)
            self._kept_grads[chunk] = members
            self._tickets["kept", chunk] = self.tower.gather(mine, members.unbind(0))

    def collect(self, chunk: int) -> None:
        """Wait for all gradients of the chunk's pooled rows."""
        self._wait("flat", chunk)
        self._wait("kept", chunk)
        if self.has_kept:
            by_place = self._by_rank(self.pooled_grad(chunk)).unflatten(0, (len(self.layouts), -1))  # [T, R, b, D_r]
            members = self._kept_grads[chunk].unflatten(1, (len(self.layouts), -1))  # [R, T, b, kept_width]
            by_place[..., self.own.sent_width :] = members.transpose(0, 1)

    def input_grads(self) -> tuple[Tensor | None, ...]:
        """None: nothing stands between."""
        self._kept_grads.clear()
        return ()

    def _by_rank(self, rows: Tensor) -> Tensor:
        return rows.view(len(self.block_order), self.chunk_samples, self.shards.width)  # [W, b, D_r]

    def _blocks_of(self, rows: Tensor) -> _Blocks:
        """The columns ``[b, D_g]`` of all ranks: those of ``rows`` if they are in order, new memory if not."""
        widths = [[*layout.sent_widths, layout.kept_width] for layout in self.layouts]
        flat = list(itertools.chain(*widths))
        if self.in_order:
            pieces = list(rows.split(flat, dim=1))
        else:
            pieces = [rows.new_empty(len(rows), width) for width in flat]
        remaining = iter(pieces)
        return _Blocks([[next(remaining) for _ in tower] for tower in widths])


@dataclass(frozen=True)
class _Blocks:
    """Of every tower, the members' columns and, last, the kept ones."""

    by_tower: list[list[Tensor]]

    @property
    def sent(self) -> list[Tensor]:
        return [block for blocks in self.by_tower for block in blocks[:-1]]

    @property
    def kept(self) -> list[Tensor]:
        return [blocks[-1] for blocks in self.by_tower]
