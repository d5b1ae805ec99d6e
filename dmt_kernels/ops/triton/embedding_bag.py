"""The pooled lookup in Triton: a program per bag, rows added in the order of the ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmt_kernels.ops.bag_arguments import Ints, pooled_shape
from dmt_kernels.ops.triton.bags import as_element, block_rows, describe, feature_at, locate


@triton.jit
def pool_kernel(
    features, like, ids, offsets, weights, order, out, num_features, samples, width,
    IS_SHARD: tl.constexpr, WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    bag = tl.program_id(0).to(tl.int64)
    group = bag // samples
    table, stride, rows, start, dim, column, is_mean = feature_at(features, group % num_features, like)
    target = out + (tl.load(order + group // num_features) * samples + bag % samples) * width + column
    begin, end = tl.load(offsets + bag), tl.load(offsets + bag + 1)
    for first in range(0, dim, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        sums = tl.zeros([COLUMNS], tl.float32)
        count = 0.0
        for position in range(begin, end):
            row, found, counted = locate(ids, position, begin < end, start, rows, IS_SHARD)
            values = tl.load(table + row * stride + columns, mask=found & (columns < dim), other=0).to(tl.float32)
            if WEIGHTED:
                values = tl.where(found, tl.load(weights + position) * values, 0.0)
            sums += values
            count += tl.where(counted, 1.0, 0.0)
        if is_mean != 0:
            sums = tl.where(count > 0, tl.div_rn(sums, tl.maximum(count, 1.0)), sums)
        tl.store(target + columns, as_element(sums, out), mask=columns < dim)


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
    """As ``torch.ops.dmt.embedding_bag``. Ids out of range are missing, whatever `bounds`; offsets are trusted."""
    dtype = out_dtype or (tables[0].dtype if tables else torch.float32)
    out = ids.new_empty(pooled_shape(tables, offsets, feature_tables), dtype=dtype)
    bags = offsets.numel() - 1
    if not out.numel() or not bags:
        return out
    features, width = describe(tables, feature_tables, poolings, row_starts)
    order = block_rows(block_order, ids.device)
    weights = None if per_sample_weights is None else per_sample_weights.float().contiguous()
    samples = bags // (len(order) * len(features))
    columns = min(1024, triton.next_power_of_2(max(table.size(1) for table in tables)))
    pool_kernel[(bags,)](
        features, tables[0], ids.contiguous(), offsets.contiguous(), weights, order, out, len(features), samples, width,
        IS_SHARD=row_starts is not None, WEIGHTED=weights is not None, COLUMNS=columns,
        num_warps=max(1, columns // 256),
    )  # fmt: skip
    return out


def embedding_bag_(out: Tensor, *arguments, **options) -> None:
    """As ``torch.ops.dmt.embedding_bag_``."""
    out.copy_(embedding_bag(*arguments, **options))
