"""The pooled lookup fused with a linear tower module, in Triton: a tile of pooled rows lives in registers."""

from __future__ import annotations

import os
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
    feature_fields,
    load_offset,
    locate,
    mean,
    missing_ids,
    record_missing,
    to_bfloat16,
)
from dmt_kernels.ops.triton.checks import check_bags, check_parameters

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # takes the bits of a bfloat16 for a number in products
SAMPLES, OUT_COLUMNS, DEPTH = 32, 64, 32  # of a tile


@triton.jit
def multiply(a, b, sums, ROUNDED: tl.constexpr, INTERPRETED: tl.constexpr):
    """Return sums + a @ b, of float32 blocks."""
    if ROUNDED:
        a, b = to_bfloat16(a), to_bfloat16(b)
    if ROUNDED and not INTERPRETED:
        return tl.dot(a, b, sums)
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")


@triton.jit
def pool_tile(
    bags, features, f, block, sample, there, first,
    IS_SHARD: tl.constexpr, WEIGHTED: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Pool columns [first, first + DEPTH) of feature f for the samples of a block: [SAMPLES, DEPTH].

    And count those of their ids that are out of range, and keep a place where one is, plus 1: [SAMPLES] each.
    """
    like, ids, offsets, weights, num_ids, num_features, samples = bags
    table, stride, rows, start, dim, _, is_mean = feature_at(features, f, like)
    bag = (block * num_features + f) * samples + sample
    begin = load_offset(offsets, bag, there, num_ids)
    length = load_offset(offsets, bag + 1, there, num_ids) - begin
    columns = first + tl.arange(0, DEPTH)
    pooled = tl.zeros([SAMPLES, DEPTH], tl.float32)
    count = tl.zeros([SAMPLES], tl.int32)
    missing, wild = tl.zeros([SAMPLES], tl.int32), tl.zeros([SAMPLES], tl.int64)
    for step in range(0, tl.max(length, axis=0)):
        position = begin + step
        row, found, counted = locate(ids, position, step < length, start, rows, IS_SHARD)
        at = table + row[:, None] * stride + columns[None, :]
        values = tl.load(at, mask=found[:, None] & (columns < dim)[None, :], other=0).to(tl.float32)
        if WEIGHTED:
            scale = tl.load(weights + position, mask=found, other=0.0)
            values = tl.where(found[:, None], scale[:, None] * values, 0.0)
        pooled += values
        count += counted.to(tl.int32)
        is_wild = (step < length) & (counted == 0)
        missing += is_wild.to(tl.int32)
        wild = tl.where(is_wild, position + 1, wild)
    if is_mean != 0:
        pooled = mean(pooled, count[:, None])
    return pooled, missing, wild


@triton.jit
def tower_kernel(
    features, like, ids, offsets, weights, order, record, matrix, bias, out,
    num_ids, num_features, samples, width, out_width,
    IS_SHARD: tl.constexpr, WEIGHTED: tl.constexpr, RECORDS: tl.constexpr, BIASED: tl.constexpr, ROUNDED: tl.constexpr,
    INTERPRETED: tl.constexpr, SAMPLES: tl.constexpr, OUT_COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    bags = (like, ids, offsets, weights, num_ids, num_features, samples)
    tiles = tl.cdiv(samples, SAMPLES)
    block = tl.program_id(0).to(tl.int64) // tiles
    sample = tl.program_id(0).to(tl.int64) % tiles * SAMPLES + tl.arange(0, SAMPLES)
    there = sample < samples
    column_out = tl.program_id(1) * OUT_COLUMNS + tl.arange(0, OUT_COLUMNS)
    sums = tl.zeros([SAMPLES, OUT_COLUMNS], tl.float32)
    for f in range(0, num_features):
        fields = feature_fields(features, f)
        dim, first_column = tl.load(fields + 2), tl.load(fields + 3)
        for first in range(0, dim, DEPTH):
            pooled, missing, wild = pool_tile(
                bags, features, f, block, sample, there, first, IS_SHARD, WEIGHTED, SAMPLES, DEPTH
            )
            if RECORDS:
                if (tl.program_id(1) == 0) & (first == 0):
                    place = tl.max(wild, axis=0)
                    if place > 0:
                        at_sample = tl.sum(tl.where(wild == place, sample, 0), axis=0)
                        count = tl.sum(missing, axis=0)
                        record_missing(record, count, tl.load(ids + place - 1), features, f, at_sample, block)
            columns = first + tl.arange(0, DEPTH)
            at = matrix + column_out[None, :].to(tl.int64) * width + first_column + columns[:, None]
            factors = tl.load(at, mask=(column_out < out_width)[None, :] & (columns < dim)[:, None], other=0)
            sums = multiply(pooled, factors.to(tl.float32), sums, ROUNDED, INTERPRETED)
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
    """As ``torch.ops.dmt.tower_pool``; products of `tf32` are exact ones."""
    op, layout = "tower_pool", (feature_tables, poolings, row_starts, block_order)
    check_products(op, product_dtype)
    check_bags(op, tables, ids, offsets, per_sample_weights, *layout, bounds)
    dtype = tables[0].dtype if tables else weight.dtype
    check_parameters(op, dtype, pooled_shape(tables, offsets, feature_tables)[1], weight, bias, ids)
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
        features, tables[0], ids.contiguous(), offsets.contiguous(), weights, order, missing_ids(ids.device),
        weight.contiguous(), None if bias is None else bias.contiguous(), out,
        ids.numel(), len(features), samples, width, weight.size(0),
        IS_SHARD=row_starts is not None, WEIGHTED=weights is not None, RECORDS=bounds == 0, BIASED=bias is not None,
        ROUNDED=product_dtype is torch.bfloat16, INTERPRETED=INTERPRETED,
        SAMPLES=SAMPLES, OUT_COLUMNS=OUT_COLUMNS, DEPTH=DEPTH, **EXACT,
    )  # fmt: skip
    return out


def check_products(op: str, product_dtype: torch.dtype | None) -> None:
    """Refuse what these kernels do not multiply in."""
    if product_dtype not in (None, torch.float32, torch.bfloat16):
        raise RuntimeError(f"{op}: the Triton kernels multiply in float32 or bfloat16, not {product_dtype}")
