"""The pooled lookup fused with a linear tower module, in Triton: a tile of pooled rows lives in registers."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmt_kernels.ops.bag_arguments import Ints, pooled_shape
from dmt_kernels.ops.triton.bags import as_element, block_rows, describe, feature_at, locate, to_bfloat16

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # takes the bits of a bfloat16 for a number in products
SAMPLES, OUT_COLUMNS, DEPTH = 32, 64, 32  # of a tile


@triton.jit
def tower_kernel(
    features, like, ids, offsets, weights, order, matrix, bias, out, num_features, samples, width, out_width,
    IS_SHARD: tl.constexpr, WEIGHTED: tl.constexpr, BIASED: tl.constexpr, ROUNDED: tl.constexpr,
    INTERPRETED: tl.constexpr, SAMPLES: tl.constexpr, OUT_COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(samples, SAMPLES)
    block = tl.program_id(0).to(tl.int64) // tiles
    sample = tl.program_id(0).to(tl.int64) % tiles * SAMPLES + tl.arange(0, SAMPLES)
    there = sample < samples
    column_out = tl.program_id(1) * OUT_COLUMNS + tl.arange(0, OUT_COLUMNS)
    sums = tl.zeros([SAMPLES, OUT_COLUMNS], tl.float32)
    for f in range(0, num_features):
        table, stride, rows, start, dim, first_column, is_mean = feature_at(features, f, like)
        bag = (block * num_features + f) * samples + sample
        begin = tl.load(offsets + bag, mask=there, other=0)
        length = tl.load(offsets + bag + 1, mask=there, other=0) - begin
        longest = tl.max(length, axis=0)
        for first in range(0, dim, DEPTH):
            columns = first + tl.arange(0, DEPTH)
            pooled = tl.zeros([SAMPLES, DEPTH], tl.float32)
            count = tl.zeros([SAMPLES], tl.float32)
            for step in range(0, longest):
                row, found, counted = locate(ids, begin + step, step < length, start, rows, IS_SHARD)
                at = table + row[:, None] * stride + columns[None, :]
                values = tl.load(at, mask=found[:, None] & (columns < dim)[None, :], other=0).to(tl.float32)
                if WEIGHTED:
                    scale = tl.load(weights + begin + step, mask=found, other=0.0)
                    values = tl.where(found[:, None], scale[:, None] * values, 0.0)
                pooled += values
                count += tl.where(counted, 1.0, 0.0)
            if is_mean != 0:
                pooled = tl.where((count > 0)[:, None], tl.div_rn(pooled, tl.maximum(count, 1.0)[:, None]), pooled)
            at = matrix + column_out[None, :].to(tl.int64) * width + first_column + columns[:, None]
            factors = tl.load(at, mask=(column_out < out_width)[None, :] & (columns < dim)[:, None], other=0)
            if ROUNDED:
                pooled, factors = to_bfloat16(pooled), to_bfloat16(factors.to(tl.float32))
            if ROUNDED and not INTERPRETED:
                sums = tl.dot(pooled, factors, sums)
            else:
                sums = tl.dot(pooled.to(tl.float32), factors.to(tl.float32), sums, input_precision="ieee")
    if BIASED:
        sums += tl.load(bias + column_out, mask=column_out < out_width, other=0).to(tl.float32)[None, :]
    row_out = tl.load(order + block) * samples + sample
    at = out + row_out[:, None] * out_width + column_out[None, :]
    tl.store(at, as_element(sums, out), mask=there[:, None] & (column_out < out_width)[None, :])


def tower_pool(
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    feature_tables: Ints = None,
    poolings: Ints = None,
    row_starts: Ints = None,
    block_order: Ints = None,
    bounds: int = 0,
    sparse: bool = False,
    product_dtype: torch.dtype | None = None,
    tf32: bool = False,
) -> Tensor:
    """As ``torch.ops.dmt.tower_pool``. Ids out of range are missing, whatever `bounds`; offsets are trusted.

    Products of `tf32` are exact ones.
    """
    num_rows, _ = pooled_shape(tables, offsets, feature_tables)
    out = weight.new_empty(num_rows, weight.size(0))
    if not out.numel():
        return out
    features, width = describe(tables, feature_tables, poolings, row_starts)
    order = block_rows(block_order, ids.device)
    weights = None if per_sample_weights is None else per_sample_weights.float().contiguous()
    samples = num_rows // len(order)
    grid = (len(order) * triton.cdiv(samples, SAMPLES), triton.cdiv(weight.size(0), OUT_COLUMNS))
    tower_kernel[grid](
        features, tables[0], ids.contiguous(), offsets.contiguous(), weights, order, weight.contiguous(),
        None if bias is None else bias.contiguous(), out, len(features), samples, width, weight.size(0),
        IS_SHARD=row_starts is not None, WEIGHTED=weights is not None, BIASED=bias is not None,
        ROUNDED=product_dtype is torch.bfloat16, INTERPRETED=INTERPRETED,
        SAMPLES=SAMPLES, OUT_COLUMNS=OUT_COLUMNS, DEPTH=DEPTH,
    )  # fmt: skip
    return out
