"""What all kernels over bags read: a table of the features on the device, and the row of an id."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmt_kernels.ops.bag_arguments import Ints, on_device


def describe(tables: Sequence[Tensor], feature_tables: Ints, poolings: Ints, row_starts: Ints) -> tuple[Tensor, int]:
    """Return what ``feature_at`` reads, int64 ``[F, 7]`` on the device, and D."""
    features = range(len(tables)) if feature_tables is None else feature_tables
    rows, column = [], 0
    for f, t in enumerate(features):
        table = tables[t]
        if table.dtype == torch.float64:
            raise RuntimeError("tables of float64 are for CPUs only")
        start = 0 if row_starts is None else row_starts[t]
        is_mean = 0 if poolings is None else poolings[f]
        rows.append((table.data_ptr(), table.stride(0), table.size(0), start, table.size(1), column, is_mean))
        column += table.size(1)
    return on_device(tuple(rows), tables[0].device), column


def block_rows(block_order: Ints, device: torch.device) -> Tensor:
    """The block of the output that each block fills, on the device."""
    return on_device(((tuple(block_order) if block_order is not None else (0,)),), device)[0]


@triton.jit
def feature_at(features, f, like):
    """(table, stride, rows, start, dim, column, is_mean) of feature f. `like`: any table."""
    at = features + f * 7
    table = tl.load(at).to(like.dtype)
    return (
        table, tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5), tl.load(at + 6)
    )  # fmt: skip


@triton.jit
def locate(ids, position, here, start, rows, IS_SHARD: tl.constexpr):
    """(row, whether there is such a row, whether the id counts in a mean) of the ids at `position`."""
    id = tl.load(ids + position, mask=here, other=-1).to(tl.int64)
    row = id - start
    found = here & (id >= start) & (row < rows)
    counted = found
    if IS_SHARD:
        counted = here & (id >= 0)
    return tl.where(found, row, 0), found, counted


@triton.jit
def to_bfloat16(x):
    """To nearest, ties to even: in the interpreter too, whose own conversion cuts off, and loses the least numbers."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    return tl.where(x == x, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def as_element(x, like):
    """What is stored behind the pointer `like`."""
    if like.dtype.element_ty == tl.bfloat16:
        return to_bfloat16(x)
    else:
        return x.to(like.dtype.element_ty)
