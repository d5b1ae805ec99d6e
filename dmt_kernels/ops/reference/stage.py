"""Stages in plain ``torch.distributed``: the engine where the compiled one is not there, and its oracle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_kernels.ops.groups import resolve_group
from dmt_kernels.spec import WireFormat

_untracked = torch._C._AutoDispatchBelowADInplaceOrView  # no gradients, no version counters
_copied_bytes = 0


class _Message:
    """Blocks of rows as the bytes that travel; `sizes` are those of each block. Blocks of bytes travel as they are."""

    def __init__(self, blocks: Sequence[Tensor], format: int | None, ranks: int) -> None:
        if len(blocks) != ranks:
            raise ValueError(f"a stage among {ranks} ranks needs as many blocks, got {len(blocks)}")
        for block in blocks:
            if block.dim() != 2:
                raise ValueError(f"a block has 2 dimensions, got one of shape {list(block.shape)}")
            if block.dtype is not blocks[0].dtype:
                raise ValueError(f"blocks of a stage have one dtype, got {blocks[0].dtype} and {block.dtype}")
        if blocks[0].dtype is torch.uint8:  # encoded already
            format = None
        for block in blocks if format is not None else ():
            if not block.is_floating_point():
                raise ValueError(f"rows that are encoded are floating point, got {block.dtype}")
            if block.numel() and block.shape[1] > 1 and block.stride(1) != 1:
                raise ValueError("columns of rows that are encoded are adjacent in memory")
        self.blocks, self.format = blocks, None if format is None else WireFormat.from_code(format)
        self.sizes = [len(block) * self._row_bytes(block) for block in blocks]
        self.in_place = self.format is None and _lie_together(blocks)
        if self.in_place:
            first = next((block for block in blocks if block.numel()), blocks[0])
            count = sum(block.numel() for block in blocks)
            self.bytes = first.as_strided((count,), (1,)).view(torch.uint8)
        else:
            self.bytes = torch.empty(sum(self.sizes), dtype=torch.uint8, device=blocks[0].device)

    def pack(self, seed: int | None, step: int) -> None:
        if self.format is not None:
            torch.ops.dmt.wire_encode_blocks_(self.bytes, self.blocks, self.format.code, seed, step)
        elif not self.in_place:
            for piece, block in self._pieces():
                _copy(piece, block)

    def unpack(self) -> None:
        if self.format is not None:
            torch.ops.dmt.wire_decode_blocks_(self.blocks, self.bytes, self.format.code)
        elif not self.in_place:
            for piece, block in self._pieces():
                _copy(block, piece)

    def _row_bytes(self, block: Tensor) -> int:
        columns = block.shape[1]
        return columns * block.itemsize if self.format is None else self.format.row_bytes(columns)

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        for piece, block in zip(self.bytes.split(self.sizes), self.blocks, strict=True):
            yield piece.view(block.dtype).view(block.shape), block


class Stage:
    """A stage of which blocks are expected."""

    def __init__(self, out: Sequence[Tensor], group: str, format: int | None) -> None:
        self._group = resolve_group(group)
        with _untracked():
            self._received = _Message(out, format, self._group.size())

    def send(self, blocks: Sequence[Tensor], format: int | None, seed: int | None, step: int) -> None:
        """Send a block to every rank; arguments as in `dmt_kernels.ops.stage.stage_send`."""
        with _untracked():
            self._sent = _Message(blocks, format, self._group.size())
            own = self._group.rank()
            if self._sent.sizes[own] != self._received.sizes[own]:
                sizes = f"{self._sent.sizes[own]} bytes, and expects {self._received.sizes[own]}"
                raise ValueError(f"a rank sends itself {sizes}")
            sent, received = self._sent.blocks[0].dtype, self._received.blocks[0].dtype
            if sent is not received and torch.uint8 not in (sent, received):
                raise ValueError(f"blocks are {sent}, and {received} is expected")
            self._sent.pack(seed, step)
            work = dist.all_to_all_single(
                self._received.bytes,
                self._sent.bytes,
                self._received.sizes,
                self._sent.sizes,
                group=self._group,
                async_op=True,
            )
        assert work is not None
        self._work = work
        self.sent_bytes = self._sent.sizes

    def wait(self) -> None:
        """Wait for the blocks and put them where they belong."""
        self._work.wait()
        with _untracked():
            self._received.unpack()


def expect(out: Sequence[Tensor], group: str, format: int | None) -> Stage:
    """Begin a stage; arguments as in `dmt_kernels.ops.stage.stage_expect`."""
    return Stage(out, group, format)


def share_memory(group: str, is_willing: bool) -> list[int]:
    """Nobody shares memory here."""
    return []


def copied_bytes() -> int:
    """Bytes copied to pack and unpack."""
    return _copied_bytes


def _copy(target: Tensor, source: Tensor) -> None:
    global _copied_bytes
    target.copy_(source)
    _copied_bytes += source.numel() * source.itemsize


def _lie_together(blocks: Sequence[Tensor]) -> bool:
    """Whether the blocks are one piece of memory, in order."""
    full = [block for block in blocks if block.numel()]
    sizes = (block.numel() * block.itemsize for block in full)
    starts = itertools.accumulate(sizes, initial=full[0].data_ptr() if full else 0)
    return all(
        block.is_contiguous()
        and block.data_ptr() == start
        and block.untyped_storage().data_ptr() == full[0].untyped_storage().data_ptr()
        for block, start in zip(full, starts, strict=False)
    )
