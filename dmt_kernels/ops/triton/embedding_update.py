"""The fused table update in Triton: ids become keys, which are sorted; programs sum the rows that begin in a stretch.

The order of sums is that of csrc/kernels/cuda/embedding_update.h: one by one, and in runs of 128 where a row is hit
more often, so that many programs share it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmt_kernels.ops.bag_arguments import Ints, on_device, pooled_shape
from dmt_kernels.ops.triton.bags import (
    EXACT,
    block_rows,
    describe,
    feature_fields,
    load_offset,
    locate,
    missing_ids,
    record_missing,
)
from dmt_kernels.ops.triton.checks import check, check_bags, check_matrix, check_update
from dmt_kernels.ops.triton.row_update import SGD, SQUARES, apply_to_row

RUN = 128
STRETCH = 16  # keys of a program
POSITIONS = 256  # of ids, of a program
WIDEST = 8192  # columns that a program can hold
_NO_ROW = tl.constexpr(2**63 - 1)  # the key of ids that no row belongs to


@triton.jit
def count_kernel(
    features, ids, offsets, counts, num_ids, num_features, samples, IS_SHARD: tl.constexpr, POSITIONS: tl.constexpr
):
    bag = tl.program_id(0).to(tl.int64)
    fields = feature_fields(features, bag // samples % num_features)
    begin, end = load_offset(offsets, bag, True, num_ids), load_offset(offsets, bag + 1, True, num_ids)
    count = tl.zeros([POSITIONS], tl.int64)
    for first in range(begin, end, POSITIONS):
        position = first + tl.arange(0, POSITIONS)
        _, _, counted = locate(ids, position, position < end, tl.load(fields + 1), tl.load(fields), IS_SHARD)
        count += counted.to(tl.int64)
    tl.store(counts + bag, tl.sum(count, axis=0).to(tl.float32))


@triton.jit
def key_kernel(
    features, ids, offsets, weights, counts, record, keys, scales, refused,
    num_ids, num_bags, num_features, samples, sample_bits, feature_bits, levels,
    IS_SHARD: tl.constexpr, WEIGHTED: tl.constexpr, SCALED: tl.constexpr, RECORDS: tl.constexpr,
    POSITIONS: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    low = tl.zeros([POSITIONS], tl.int64)  # how many offsets are at most the position: a search by halves
    high = low + num_bags + 1
    for _ in range(0, levels):
        middle = (low + high) // 2
        is_below = tl.load(offsets + middle, mask=low < high, other=0) <= position
        low, high = tl.where((low < high) & is_below, middle + 1, low), tl.where(is_below, high, middle)
    bag = tl.minimum(tl.maximum(low - 1, 0), num_bags - 1)
    here = (position < num_ids) & (low > 0) & (low <= num_bags)
    group = bag // samples
    f = group % num_features
    sample = group // num_features * samples + bag % samples
    fields = feature_fields(features, f)
    row, found, counted = locate(ids, position, here, tl.load(fields + 1), tl.load(fields), IS_SHARD)
    key = ((tl.load(fields + 6) + row) << (sample_bits + feature_bits)) | (sample << feature_bits) | f
    tl.store(keys + position, tl.where(found, key, _NO_ROW), mask=position < num_ids)
    if SCALED:
        scale = tl.full([POSITIONS], 1.0, tl.float32)
        if WEIGHTED:
            scale = tl.load(weights + position, mask=found, other=0.0)
        count = tl.load(counts + bag, mask=found & (tl.load(fields + 4) != 0), other=1.0)
        tl.store(scales + position, tl.div_rn(scale, count), mask=position < num_ids)
    if RECORDS:
        missing = here & (counted == 0)
        how_many = tl.sum(missing.to(tl.int32), axis=0)
        if how_many > 0:
            tl.store(refused, 1)
            first = tl.min(tl.where(missing, position, num_ids), axis=0)
            at_bag = tl.sum(tl.where(position == first, bag, 0), axis=0)
            at_group = at_bag // samples
            at_f, block = at_group % num_features, at_group // num_features
            record_missing(record, how_many, tl.load(ids + first), features, at_f, at_bag % samples, block)


@triton.jit
def row_at(keys, i, there, low_bits):
    return tl.load(keys + i, mask=there, other=_NO_ROW) >> low_bits


@triton.jit
def first_of_row(keys, row, low, high, low_bits):
    """The first of [low, high) whose row is at least `row`, or high."""
    while low < high:
        middle = (low + high) // 2
        is_before = row_at(keys, middle, low < high, low_bits) < row
        low, high = tl.where(is_before, middle + 1, low), tl.where(is_before, high, middle)
    return low


@triton.jit
def contribution(batch, i, there, SCALED: tl.constexpr, COLUMNS: tl.constexpr):
    """What key i adds to the gradient of its row; zeros if it is not there."""
    keys, places, scales, features, grad, order, width, samples, sample_bits, feature_bits = batch
    key = tl.load(keys + i, mask=there, other=0)
    fields = feature_fields(features, key & ((1 << feature_bits) - 1))
    sample = (key >> feature_bits) & ((1 << sample_bits) - 1)
    from_row = tl.load(order + sample // samples) * samples + sample % samples
    columns = tl.arange(0, COLUMNS)
    here = there & (columns < tl.load(fields + 2))
    values = tl.load(grad + from_row * width + tl.load(fields + 3) + columns, mask=here, other=0).to(tl.float32)
    if SCALED:
        scale = tl.load(scales + tl.load(places + i, mask=there, other=0), mask=there, other=0.0)
        values = tl.where(here, values * scale, 0.0)
    return values


@triton.jit
def run_kernel(
    keys, places, scales, features, grad, order, partials, refused, count, num_rows, width, samples,
    sample_bits, feature_bits, SCALED: tl.constexpr, COLUMNS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Write to partials[j] the sum of the run, not the last one of its row, that begins among keys [j*RUN, (j+1)*RUN).

    There is at most one, since such a run reaches beyond them.
    """
    batch = (keys, places, scales, features, grad, order, width, samples, sample_bits, feature_bits)
    low_bits = sample_bits + feature_bits
    first = tl.program_id(0).to(tl.int64) * RUN
    beyond = first + RUN
    row = row_at(keys, beyond, beyond < count, low_bits)
    if (tl.load(refused) == 0) & (row < num_rows) & (row_at(keys, beyond - 1, beyond < count, low_bits) == row):
        head = first_of_row(keys, row, beyond * 0, beyond, low_bits)
        begin = head + tl.maximum((first - head + RUN - 1) // RUN, 0) * RUN
        if row_at(keys, begin + RUN, begin + RUN < count, low_bits) == row:
            sums = tl.zeros([COLUMNS], tl.float32)
            for i in range(begin, begin + RUN, 4):
                a = contribution(batch, i, True, SCALED, COLUMNS)
                b = contribution(batch, i + 1, True, SCALED, COLUMNS)
                c = contribution(batch, i + 2, True, SCALED, COLUMNS)
                d = contribution(batch, i + 3, True, SCALED, COLUMNS)
                sums = sums + a + b + c + d
            tl.store(partials + first // RUN * COLUMNS + tl.arange(0, COLUMNS), sums)


@triton.jit
def update_kernel(
    keys, places, scales, features, grad, order, partials, refused, like, step, ranks, statistic, statistic_size,
    count, num_rows, width, samples, sample_bits, feature_bits, lr, eps, weight_decay,
    OPTIMIZER: tl.constexpr, DECAYS: tl.constexpr, SCALED: tl.constexpr, COLUMNS: tl.constexpr, RUN: tl.constexpr,
    STRETCH: tl.constexpr,
):  # fmt: skip
    batch = (keys, places, scales, features, grad, order, width, samples, sample_bits, feature_bits)
    low_bits = sample_bits + feature_bits
    columns = tl.arange(0, COLUMNS)
    begin = tl.program_id(0).to(tl.int64) * STRETCH
    count = tl.cast(count, tl.int64)
    if tl.load(refused) == 0:
        for head in range(begin, tl.minimum(begin + STRETCH, count)):
            row = row_at(keys, head, True, low_bits)
            if (row < num_rows) & ((head == 0) | (row_at(keys, head - 1, head > 0, low_bits) != row)):
                sums = tl.zeros([COLUMNS], tl.float32)
                i = head
                if row_at(keys, head + RUN, head + RUN < count, low_bits) == row:  # long: in runs, all but the last
                    end = first_of_row(keys, row + 1, head + RUN, count, low_bits)
                    runs = (end - head - 1) // RUN
                    for run in range(0, runs):
                        sums += tl.load(partials + (head // RUN + run) * COLUMNS + columns)
                    i = head + runs * RUN
                goes_on = row_at(keys, i, i < count, low_bits) == row
                while goes_on:  # four are on their way at once
                    is_b = row_at(keys, i + 1, i + 1 < count, low_bits) == row
                    is_c = row_at(keys, i + 2, i + 2 < count, low_bits) == row
                    is_d = row_at(keys, i + 3, i + 3 < count, low_bits) == row
                    a = contribution(batch, i, True, SCALED, COLUMNS)
                    b = contribution(batch, i + 1, is_b, SCALED, COLUMNS)
                    c = contribution(batch, i + 2, is_c, SCALED, COLUMNS)
                    d = contribution(batch, i + 3, is_d, SCALED, COLUMNS)
                    sums = sums + a + b + c + d
                    i += 4
                    goes_on = row_at(keys, i, i < count, low_bits) == row
                rank = tl.load(ranks + head) if ranks is not None else head
                apply_to_row(
                    features, like, step, tl.load(keys + head) & ((1 << feature_bits) - 1), row, sums,
                    rank, statistic, statistic_size, lr, eps, weight_decay,
                    OPTIMIZER, DECAYS, COLUMNS,
                )  # fmt: skip


def embedding_update_(
    tables: Sequence[Tensor],
    states: Sequence[Tensor],
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None = None,
    feature_tables: Ints = None,
    poolings: Ints = None,
    row_starts: Ints = None,
    block_order: Ints = None,
    bounds: int = 0,
    optimizer: int = 0,
    lr: float = 0.01,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    row_mean_squares: Tensor | None = None,
    seeds: Ints = None,
    step: Tensor | None = None,
    column_starts: Ints = None,
) -> None:
    """As ``torch.ops.dmt.embedding_update_``."""
    op = "embedding_update_"
    check_update(op, tables, states, optimizer, row_mean_squares, seeds, step, column_starts, ids)
    layout = (per_sample_weights, feature_tables, poolings, row_starts, block_order)
    rounding = (seeds, step, column_starts)
    _run(
        op, tables, states, grad, ids, offsets, *layout, bounds, optimizer, lr, eps, weight_decay,
        row_mean_squares, rounding,
    )  # fmt: skip


def embedding_row_squares(
    tables: Sequence[Tensor],
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None = None,
    feature_tables: Ints = None,
    poolings: Ints = None,
    row_starts: Ints = None,
    block_order: Ints = None,
    weight_decay: float = 0.0,
) -> list[Tensor]:
    """As ``torch.ops.dmt.embedding_row_squares``, to the last places of float64. Waits for the device."""
    layout = (per_sample_weights, feature_tables, poolings, row_starts, block_order)
    squares = ids.new_zeros(ids.numel(), dtype=torch.float64)
    op = "embedding_row_squares"
    keyed = _run(op, tables, [], grad, ids, offsets, *layout, 2, SQUARES.value, 0.0, 0.0, weight_decay, squares)
    if keyed is None:
        return [squares[:0].clone() for _ in tables]
    rows, ranks = keyed
    table_ends = on_device(tuple(itertools.accumulate(table.size(0) for table in tables)), ids.device)
    ends = torch.nn.functional.pad(ranks + 1, (1, 0))[torch.searchsorted(rows, table_ends)].tolist()
    return [squares[begin:end].clone() for begin, end in itertools.pairwise([0, *ends])]


def _run(
    op: str,
    tables: Sequence[Tensor],
    states: Sequence[Tensor],
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    feature_tables: Ints,
    poolings: Ints,
    row_starts: Ints,
    block_order: Ints,
    bounds: int,
    optimizer: int,
    lr: float,
    eps: float,
    weight_decay: float,
    statistic: Tensor | None = None,
    rounding: tuple[Ints, Tensor | None, Ints] = (None, None, None),
) -> tuple[Tensor, Tensor] | None:
    """Update, or write the statistic. With one: the ids' rows, sorted, and how many begin before each's end, less 1."""
    seeds, step, column_starts = rounding
    layout = (feature_tables, poolings, row_starts, block_order)
    check_bags(op, tables, ids, offsets, per_sample_weights, *layout, bounds)
    check_matrix(op, "grad", grad, pooled_shape(tables, offsets, feature_tables), ids)
    fits = not tables or grad.dtype in (tables[0].dtype, torch.float32)
    check(fits, op, f"grad must be of the tables' dtype or float32, got {grad.dtype}")
    bags, num_ids, count = offsets.numel() - 1, ids.numel(), max((table.size(1) for table in tables), default=0)
    if not grad.numel() or not num_ids:
        return None
    if count > WIDEST:
        raise RuntimeError(f"{op}: a row of {count} columns is too wide")
    features, width = describe(tables, feature_tables, poolings, row_starts, states, seeds, column_starts)
    order = block_rows(block_order, ids.device)
    samples = bags // (len(order) * len(features))
    num_rows = sum(table.size(0) for table in tables)
    sample_bits, feature_bits = (len(order) * samples - 1).bit_length(), (len(features) - 1).bit_length()
    if sample_bits > 31:
        raise RuntimeError(f"{op}: more than 2^31 - 1 samples")
    if num_rows.bit_length() + sample_bits + feature_bits > 63:
        raise RuntimeError(f"{op}: too many rows and bags for one sort key")

    ids, offsets, grad = ids.contiguous(), offsets.contiguous(), grad.contiguous()
    is_shard, is_mean = row_starts is not None, poolings is not None and any(poolings)
    weights = None if per_sample_weights is None else per_sample_weights.float().contiguous()
    scaled = is_mean or weights is not None
    counts = scales = None
    if scaled:
        scales, counts = ids.new_empty(num_ids, dtype=torch.float32), ids.new_empty(bags, dtype=torch.float32)
    if is_mean:
        count_kernel[(bags,)](
            features, ids, offsets, counts, num_ids, len(features), samples,
            IS_SHARD=is_shard, POSITIONS=32, num_warps=1,
        )  # fmt: skip
    keys, refused = ids.new_empty(num_ids, dtype=torch.int64), ids.new_zeros(1, dtype=torch.int32)
    key_kernel[(triton.cdiv(num_ids, POSITIONS),)](
        features, ids, offsets, weights, counts, missing_ids(ids.device), keys, scales, refused,
        num_ids, bags, len(features), samples, sample_bits, feature_bits, (bags + 1).bit_length(),
        IS_SHARD=is_shard, WEIGHTED=weights is not None, SCALED=scaled, RECORDS=bounds == 0, POSITIONS=POSITIONS,
    )  # fmt: skip
    keys, places = keys.sort(stable=True)

    columns = triton.next_power_of_2(count)
    rows = ranks = None
    if statistic is not None:  # rows have numbers
        rows = keys >> (sample_bits + feature_bits)
        begins = torch.ones_like(rows, dtype=torch.bool)
        begins[1:] = rows[1:] != rows[:-1]
        ranks = (begins & (rows < num_rows)).cumsum(0) - 1
    partials = ids.new_empty(num_ids // RUN, columns, dtype=torch.float32)
    sorted_bags = (keys, places, scales, features, grad, order, partials, refused)
    sizes = (num_ids, num_rows, width, samples, sample_bits, feature_bits)
    options = {"SCALED": scaled, "COLUMNS": columns, "RUN": RUN, "num_warps": min(8, max(1, columns // 256)), **EXACT}
    if len(partials):
        run_kernel[(len(partials),)](*sorted_bags, *sizes, **options)
    update_kernel[(triton.cdiv(num_ids, STRETCH),)](
        *sorted_bags, tables[0], step if tables[0].itemsize == 2 else None,
        ranks, statistic, 0 if statistic is None else len(statistic), *sizes, lr, eps, weight_decay,
        OPTIMIZER=optimizer, DECAYS=weight_decay != 0, STRETCH=STRETCH, **options,
    )  # fmt: skip
    return None if rows is None or ranks is None else (rows, ranks)


def embedding_bag_backward(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    table_rows: Sequence[int],
    table_dims: Sequence[int],
    dtype: torch.dtype,
    feature_tables: Ints = None,
    poolings: Ints = None,
    row_starts: Ints = None,
    block_order: Ints = None,
) -> list[Tensor]:
    """As ``torch.ops.dmt.embedding_bag_backward``: the update of tables of zeros, 0 - -1 * g."""
    if dtype == torch.float64:
        raise RuntimeError("embedding_bag_backward: gradients of float64 are for CPUs only")
    shapes = zip(table_rows, table_dims, strict=True)
    grads = [grad.new_zeros(shape, dtype=torch.float32) for shape in shapes]
    layout = (per_sample_weights, feature_tables, poolings, row_starts, block_order)
    _run("embedding_bag_backward", grads, [], grad.float(), ids, offsets, *layout, 2, SGD.value, -1.0, 0.0, 0.0)
    return [table_grad.to(dtype) for table_grad in grads]
