"""The pooled lookup and its weights' gradient in Triton: a program per bag, rows added in the order of the ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmt_kernels.ops.bag_arguments import Ints, pooled_shape
from dmt_kernels.ops.triton.bags import (
    EXACT,
    as_element,
    block_rows,
    describe,
    feature_at,
    load_offset,
    locate,
    mean,
    missing_ids,
    record_missing,
)
from dmt_kernels.ops.triton.checks import check, check_bags, check_matrix


@triton.jit
def pool_kernel(
    features, like, ids, offsets, weights, order, record, out, num_ids, num_features, samples, width,
    IS_SHARD: tl.constexpr, WEIGHTED: tl.constexpr, RECORDS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    bag = tl.program_id(0).to(tl.int64)
    group = bag // samples
    block, f = group // num_features, group % num_features
    table, stride, rows, start, dim, column, is_mean = feature_at(features, f, like)
    target = out + (tl.load(order + block) * samples + bag % samples) * width + column
    begin, end = load_offset(offsets, bag, True, num_ids), load_offset(offsets, bag + 1, True, num_ids)
    for first in range(0, dim, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        sums = tl.zeros([COLUMNS], tl.float32)
        count = tl.zeros([], tl.int64)
        wild = tl.zeros([], tl.int64)  # where an id is out of range, plus 1
        for position in range(begin, end):
            row, found, counted = locate(ids, position, begin < end, start, rows, IS_SHARD)
            values = tl.load(table + row * stride + columns, mask=found & (columns < dim), other=0).to(tl.float32)
            if WEIGHTED:
                values = tl.where(found, tl.load(weights + position) * values, 0.0)
            sums += values
            count += counted.to(tl.int64)
            if RECORDS:
                wild = tl.where(counted, wild, position + 1)
        if RECORDS:
            if (wild > 0) & (first == 0):
                missing = end - begin - count
                record_missing(record, missing, tl.load(ids + wild - 1), features, f, bag % samples, block)
        if is_mean != 0:
            sums = mean(sums, count)
        tl.store(target + columns, as_element(sums, out), mask=columns < dim)


@triton.jit
def weights_kernel(
    features, like, ids, offsets, order, grad, out, num_ids, num_features, samples, width,
    IS_SHARD: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    bag = tl.program_id(0).to(tl.int64)
    group = bag // samples
    table, stride, rows, start, dim, column, is_mean = feature_at(features, group % num_features, like)
    source = grad + (tl.load(order + group // num_features) * samples + bag % samples) * width + column
    begin, end = load_offset(offsets, bag, True, num_ids), load_offset(offsets, bag + 1, True, num_ids)
    count = tl.zeros([], tl.int64)
    if is_mean != 0:
        for position in range(begin, end):
            _, _, counted = locate(ids, position, begin < end, start, rows, IS_SHARD)
            count += counted.to(tl.int64)
    for position in range(begin, end):
        row, found, _ = locate(ids, position, begin < end, start, rows, IS_SHARD)
        total = 0.0
        for first in range(0, dim, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)
            here = found & (columns < dim)
            values = tl.load(table + row * stride + columns, mask=here, other=0).to(tl.float32)
            total += tl.sum(values * tl.load(source + columns, mask=here, other=0), axis=0)
        if is_mean != 0:
            total = mean(total, count)
        tl.store(out + position, total)


def embedding_bag(
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None = None,
    feature_tables: Ints = None,
    poolings: Ints = None,
    row_starts: Ints = None,
    block_order: Ints = None,
    bounds: int = 0,
    out_dtype: torch.dtype | None = None,
    sparse: bool = False,
) -> Tensor:
    """As ``torch.ops.dmt.embedding_bag``."""
    op, layout = "embedding_bag", (feature_tables, poolings, row_starts, block_order)
    check_bags(op, tables, ids, offsets, per_sample_weights, *layout, bounds)
    is_known = out_dtype in (None, torch.float32, torch.float16, torch.bfloat16)
    check(is_known, op, f"outputs are float32, float16 or bfloat16, not {out_dtype}")
    dtype = out_dtype or (tables[0].dtype if tables else torch.float32)
    out = ids.new_empty(pooled_shape(tables, offsets, feature_tables), dtype=dtype)
    bags = offsets.numel() - 1
    if not out.numel() or not bags:
        return out
    features, width = describe(tables, feature_tables, poolings, row_starts)
    order = block_rows(block_order, ids.device)
    weights = None if per_sample_weights is None else per_sample_weights.float().contiguous()
    samples = bags // (len(order) * len(features))
    pool_kernel[(bags,)](
        features, tables[0], ids.contiguous(), offsets.contiguous(), weights, order, missing_ids(ids.device), out,
        ids.numel(), len(features), samples, width, IS_SHARD=row_starts is not None, WEIGHTED=weights is not None,
        RECORDS=bounds == 0, **_columns(tables), **EXACT,
    )  # fmt: skip
    return out


def embedding_bag_(out: Tensor, *arguments, **options) -> None:
    """As ``torch.ops.dmt.embedding_bag_``."""
    pooled = embedding_bag(*arguments, **options)
    check_matrix("embedding_bag_", "out", out, pooled.shape, pooled)
    fits = out.dtype == pooled.dtype and out.is_contiguous()
    check(fits, "embedding_bag_", f"out must be contiguous and {pooled.dtype} like the tables, got {out.dtype}")
    out.copy_(pooled)


def embedding_bag_weights_backward(
    grad: Tensor,
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    feature_tables: Ints = None,
    poolings: Ints = None,
    row_starts: Ints = None,
    block_order: Ints = None,
) -> Tensor:
    """As ``torch.ops.dmt.embedding_bag_weights_backward``."""
    op, layout = "embedding_bag_weights_backward", (feature_tables, poolings, row_starts, block_order)
    check_bags(op, tables, ids, offsets, None, *layout)
    check_matrix(op, "grad", grad, pooled_shape(tables, offsets, feature_tables), ids)
    out = grad.new_zeros(ids.shape, dtype=torch.float32)  # also for what no bag holds
    bags = offsets.numel() - 1
    if not grad.numel() or not ids.numel():
        return out
    features, width = describe(tables, feature_tables, poolings, row_starts)
    order = block_rows(block_order, ids.device)
    samples = bags // (len(order) * len(features))
    weights_kernel[(bags,)](
        features, tables[0], ids.contiguous(), offsets.contiguous(), order, grad.float().contiguous(), out,
        ids.numel(), len(features), samples, width, IS_SHARD=row_starts is not None, **_columns(tables), **EXACT,
    )  # fmt: skip
    return out


def _columns(tables: Sequence[Tensor]) -> dict[str, int]:
    """How many columns a program takes at a time, and its warps."""
    columns = min(1024, triton.next_power_of_2(max(table.size(1) for table in tables)))
    return {"COLUMNS": columns, "num_warps": max(1, columns // 256)}
