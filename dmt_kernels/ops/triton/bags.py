"""What all kernels over bags read, a table of the features on the device and the row of an id; and what they record."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmt_kernels.ops.bag_arguments import Ints, on_device

_FIELDS = tl.constexpr(13)  # of a feature
TABLES = 128  # of one launch: parameters of kernels have 4 KB
EXACT = {"enable_fp_fusion": False}  # products are rounded before they are added, as everywhere


def describe(
    tables: Sequence[Tensor],
    feature_tables: Ints,
    poolings: Ints,
    row_starts: Ints,
    states: Sequence[Tensor] = (),
    seeds: Ints = None,
    column_starts: Ints = None,
) -> tuple[Tensor, int]:
    """Return what ``feature_at`` and its kin read, int64 ``[F, 13]`` on the device, and D."""
    features = range(len(tables)) if feature_tables is None else feature_tables
    first_rows = [0]
    for table in tables:
        first_rows.append(first_rows[-1] + table.size(0))
    rows, column = [], 0
    for f, t in enumerate(features):
        table = tables[t]
        start = 0 if row_starts is None else row_starts[t]
        is_mean = 0 if poolings is None else poolings[f]
        place = (0, table.stride(0), table.size(0), start, table.size(1), column, is_mean)
        state = (0, states[t].stride(0) if states else 0)
        random = (0 if seeds is None else seeds[t], 0 if column_starts is None else column_starts[t])
        rows.append((*place, t, first_rows[t], *state, *random))
        column += table.size(1)
    described = on_device(tuple(rows), tables[0].device).clone()
    for first in range(0, len(tables), TABLES):
        some = slice(first, first + TABLES)
        address_kernel[(len(rows),)](described, tuple(tables[some]), tuple(states[some]), first, num_warps=1)
    return described, column


def block_rows(block_order: Ints, device: torch.device) -> Tensor:
    """The block of the output that each block fills, on the device."""
    return on_device(((tuple(block_order) if block_order is not None else (0,)),), device)[0]


_records: dict[torch.device, Tensor] = {}


def missing_ids(device: torch.device) -> Tensor:
    """Where kernels record ids out of range: (count, id, table, feature, sample, block), int64."""
    if device not in _records:
        with torch.inference_mode(False):  # what is made there could not be cleared outside
            _records[device] = torch.zeros(6, dtype=torch.int64, device=device)
    return _records[device]


def take_missing_ids(like: Tensor) -> Tensor:
    """As ``torch.ops.dmt.take_missing_ids``."""
    record = missing_ids(like.device)
    taken = record.clone()
    record.zero_()
    return taken


@triton.jit
def address_kernel(features, tables, states, first):
    """Write into a feature where its table and state lie, if they are among these: from `first` on.

    Addresses come as parameters, since tensors may be others in every call, and copies would wait for the device.
    """
    at = features + tl.program_id(0) * _FIELDS
    table = tl.load(at + 7)
    for i in tl.static_range(len(tables)):
        if table == first + i:
            tl.store(at, tables[i].to(tl.int64))
            if len(states) > 0:
                tl.store(at + 9, states[i].to(tl.int64))


@triton.jit
def feature_at(features, f, like):
    """(table, stride, rows, start, dim, column, is_mean) of feature f. `like`: any table."""
    at = features + f * _FIELDS
    table = tl.load(at).to(like.dtype)
    return (
        table, tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5), tl.load(at + 6)
    )  # fmt: skip


@triton.jit
def feature_fields(features, f):
    """Where rows, start, dim, column, is_mean, the table's number and its first row among all tables' lie.

    In this order from here on; then state, its stride, the seed of random rounding and the column of the whole table
    that is the first here. Before are the table and its stride.
    """
    return features + f * _FIELDS + 2


@triton.jit
def load_offset(offsets, bag, there, num_ids):
    """Clamped: nothing is read outside of the ids."""
    return tl.minimum(tl.maximum(tl.load(offsets + bag, mask=there, other=0), 0), num_ids)


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
def mean(sums, count):
    """Of `count` ids, an integer: a float32 would count no further than 2^24."""
    return tl.where(count > 0, tl.div_rn(sums, tl.maximum(count, 1).to(tl.float32)), sums)


@triton.jit
def record_missing(record, count, id, features, f, sample, block):
    """Of `count` ids out of range, keep one, unless one is kept already."""
    if count > 0:
        if tl.atomic_add(record, count.to(tl.int64)) == 0:
            tl.store(record + 1, id.to(tl.int64))
            tl.store(record + 2, tl.load(feature_fields(features, f) + 5))
            tl.store(record + 3, f)
            tl.store(record + 4, sample)
            tl.store(record + 5, block)


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
