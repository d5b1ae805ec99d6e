"""Blocks for stages whose content every rank knows without being told, laid out in memory in several ways."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_kernels.ops import wire_decode, wire_encode
from dmt_kernels.spec import WireFormat

LAYOUTS = ("together", "apart", "columns", "reversed")
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@dataclass(frozen=True)
class Case:
    """One stage of `world` ranks."""

    world: int
    dtype: torch.dtype
    format: WireFormat | None
    sent_layout: str
    received_layout: str
    seed: int | None = None
    number: int = 0  # another one has other shapes and values
    device: str = "cpu"

    def shape(self, source: int, destination: int) -> tuple[int, int]:
        """With no rows, no columns, or neither, now and then."""
        mixed = (source * 7 + destination * 13 + self.number * 5) % 23
        return (0, 5, 1, 33, 70)[mixed % 5], (3, 17, 0, 64, 1, 130)[mixed % 6]

    def block(self, source: int, destination: int) -> Tensor:
        """What `source` sends: any bits where bits are carried, numbers with a NaN and a -0 elsewhere."""
        generator = torch.Generator().manual_seed(source * 100 + destination * 10 + self.number)
        rows, columns = self.shape(source, destination)
        if self.format is None:
            integer = INTEGERS[self.dtype.itemsize]
            bits = torch.iinfo(integer)
            shape = (rows, columns)
            return torch.randint(bits.min, bits.max, shape, generator=generator, dtype=integer).view(self.dtype)
        block = torch.randn(rows, columns, generator=generator).to(self.dtype)
        if block.numel():
            block[-1, -1], block[0, 0] = float("nan"), -0.0
        return block

    def expected(self, source: int, destination: int) -> Tensor:
        """What arrives of it."""
        block = self.block(source, destination)
        if self.format is None:
            return block
        first_row = sum(self.shape(source, other)[0] for other in range(destination))
        message = wire_encode(block, self.format, seed=self.seed, step=self.number, first_row=first_row)
        return wire_decode(message, block.shape[1], self.format, self.dtype)

    def sent(self, rank: int) -> list[Tensor]:
        blocks = lay_out([self.shape(rank, g) for g in range(self.world)], self.dtype, self.sent_layout, self.device)
        for destination, block in enumerate(blocks):
            block.copy_(self.block(rank, destination))
        return blocks

    def received(self, rank: int) -> list[Tensor]:
        """Room for what arrives."""
        return lay_out([self.shape(g, rank) for g in range(self.world)], self.dtype, self.received_layout, self.device)

    def copied_bytes(self, sent: list[Tensor], received: list[Tensor], *, piecewise: bool) -> int:
        """That packing and unpacking must move: blocks that are not contiguous; of the composition, all or none."""
        if self.format is not None and not (self.format is WireFormat.FP32 and self.dtype is torch.float32):
            return 0
        copied = 0
        for blocks, layout in ((sent, self.sent_layout), (received, self.received_layout)):
            if piecewise:
                copied += sum(block.nbytes for block in blocks if not block.is_contiguous())
            elif not in_place([(len(block), block.shape[1]) for block in blocks], layout):
                copied += sum(block.nbytes for block in blocks)
        return copied


def elements(shapes: list[tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in shapes)


def in_place(shapes: list[tuple[int, int]], layout: str) -> bool:
    """Whether blocks of that layout are one piece of memory: those that are not empty are one, or lie together."""
    full = [(rows, columns) for rows, columns in shapes if rows * columns]
    if layout == "columns":
        return not full or (len(full) == 1 and full[0][0] == 1)
    return layout == "together" or len(full) < 2


def lay_out(shapes: list[tuple[int, int]], dtype: torch.dtype, layout: str, device: str = "cpu") -> list[Tensor]:
    """Uninitialised blocks: views of one buffer, on their own, columns of a matrix, or a buffer's from behind."""
    if layout == "apart":
        return [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
    if layout == "columns":  # with a column between them
        rows, width = max(rows for rows, _ in shapes), sum(columns + 1 for _, columns in shapes)
        matrix = torch.empty(rows, width, dtype=dtype, device=device)
        ends = itertools.accumulate(columns + 1 for _, columns in shapes)
        return [matrix[:rows, end - 1 - columns : end - 1] for (rows, columns), end in zip(shapes, ends, strict=True)]
    if layout == "reversed":
        return lay_out(shapes[::-1], dtype, "together", device)[::-1]
    buffer = torch.empty(elements(shapes) + 1, dtype=dtype, device=device)[1:]  # not where its storage begins
    pieces = buffer.split([rows * columns for rows, columns in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    integer = INTEGERS[expected.dtype.itemsize]
    return actual.dtype == expected.dtype and torch.equal(actual.view(integer), expected.view(integer))
