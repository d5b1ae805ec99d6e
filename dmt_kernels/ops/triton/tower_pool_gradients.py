"""Gradients of a tower module in Triton: of its weight, with rows pooled once more, and of the pooled rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmt_kernels.ops.bag_arguments import Ints, on_device, pooled_shape
from dmt_kernels.ops.triton.bags import EXACT, block_rows, describe, feature_fields
from dmt_kernels.ops.triton.checks import check, check_bags, check_dimensions, check_matrix
from dmt_kernels.ops.triton.tower_pool import (
    DEPTH,
    INTERPRETED,
    OUT_COLUMNS,
    SAMPLES,
    check_products,
    multiply,
    pool_tile,
)

PIECE = 64  # tiles of samples that a program sums at least
PIECES = 32  # at most


@triton.jit
def weight_kernel(
    features, like, ids, offsets, weights, order, slices, grad, out,
    num_ids, num_features, samples, num_blocks, width, out_width, tiles_of_piece,
    IS_SHARD: tl.constexpr, WEIGHTED: tl.constexpr, ROUNDED: tl.constexpr, INTERPRETED: tl.constexpr,
    SAMPLES: tl.constexpr, OUT_COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Write to out[piece] grad.T @ pooled over the samples of a piece, for some columns of either."""
    bags = (like, ids, offsets, weights, num_ids, num_features, samples)
    f, first = tl.load(slices + tl.program_id(1) * 2), tl.load(slices + tl.program_id(1) * 2 + 1)
    fields = feature_fields(features, f)
    columns = first + tl.arange(0, DEPTH)
    column_out = (tl.program_id(0) * OUT_COLUMNS + tl.arange(0, OUT_COLUMNS)).to(tl.int64)
    sums = tl.zeros([OUT_COLUMNS, DEPTH], tl.float32)
    tiles = tl.cdiv(samples, SAMPLES)
    piece = tl.program_id(2).to(tl.int64)
    for tile in range(piece * tiles_of_piece, tl.minimum((piece + 1) * tiles_of_piece, num_blocks * tiles)):
        block = tile // tiles
        sample = tile % tiles * SAMPLES + tl.arange(0, SAMPLES)
        there = sample < samples
        pooled, _, _ = pool_tile(bags, features, f, block, sample, there, first, IS_SHARD, WEIGHTED, SAMPLES, DEPTH)
        row = tl.load(order + block) * samples + sample
        at = grad + row[None, :] * out_width + column_out[:, None]
        factors = tl.load(at, mask=there[None, :] & (column_out < out_width)[:, None], other=0)
        sums = multiply(factors, pooled, sums, ROUNDED, INTERPRETED)
    at = out + (piece * out_width + column_out)[:, None] * width + (tl.load(fields + 3) + columns)[None, :]
    tl.store(at, sums, mask=(column_out < out_width)[:, None] & (columns < tl.load(fields + 2))[None, :])


@triton.jit
def pooled_kernel(
    grad, weight, out, num_rows, out_width, width, weight_stride, weight_step,
    ROUNDED: tl.constexpr, INTERPRETED: tl.constexpr,
    SAMPLES: tl.constexpr, OUT_COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Multiply grad by weight."""
    row = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    column = tl.program_id(1).to(tl.int64) * OUT_COLUMNS + tl.arange(0, OUT_COLUMNS)
    sums = tl.zeros([SAMPLES, OUT_COLUMNS], tl.float32)
    for first in range(0, out_width, DEPTH):
        between = first + tl.arange(0, DEPTH)
        is_between = between < out_width
        at = grad + row[:, None] * out_width + between[None, :]
        a = tl.load(at, mask=(row < num_rows)[:, None] & is_between[None, :], other=0)
        at = weight + between[:, None].to(tl.int64) * weight_stride + column[None, :] * weight_step
        b = tl.load(at, mask=is_between[:, None] & (column < width)[None, :], other=0).to(tl.float32)
        sums = multiply(a, b, sums, ROUNDED, INTERPRETED)
    at = out + row[:, None] * width + column[None, :]
    tl.store(at, sums, mask=(row < num_rows)[:, None] & (column < width)[None, :])


def tower_pool_weight_backward(
    grad: Tensor,
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None = None,
    feature_tables: Ints = None,
    poolings: Ints = None,
    row_starts: Ints = None,
    block_order: Ints = None,
    product_dtype: torch.dtype | None = None,
    tf32: bool = False,
) -> Tensor:
    """As ``torch.ops.dmt.tower_pool_weight_backward``. Pieces of the samples are summed apart, and then in
    order; products of `tf32` are exact ones.
    """
    op, layout = "tower_pool_weight_backward", (feature_tables, poolings, row_starts, block_order)
    check_products(op, product_dtype)
    check_bags(op, tables, ids, offsets, per_sample_weights, *layout)
    num_rows, width = pooled_shape(tables, offsets, feature_tables)
    check_dimensions(op, "grad", grad)
    check_matrix(op, "grad", grad, [num_rows, grad.size(1)], ids)
    dtype, out_width = tables[0].dtype if tables else grad.dtype, grad.size(1)
    if not num_rows or not width or not out_width:
        return grad.new_zeros((out_width, width), dtype=dtype)
    features, _ = describe(tables, feature_tables, poolings, row_starts)
    order = block_rows(block_order, ids.device)
    weights = None if per_sample_weights is None else per_sample_weights.float().contiguous()
    read = range(len(tables)) if feature_tables is None else feature_tables
    slices = tuple((f, first) for f, t in enumerate(read) for first in range(0, tables[t].size(1), DEPTH))
    samples = num_rows // len(order)
    tiles = len(order) * triton.cdiv(samples, SAMPLES)
    tiles_of_piece = max(PIECE, triton.cdiv(tiles, PIECES))
    pieces = triton.cdiv(tiles, tiles_of_piece)
    sums = grad.new_empty((pieces, out_width, width), dtype=torch.float32)
    weight_kernel[(triton.cdiv(out_width, OUT_COLUMNS), len(slices), pieces)](
        features, tables[0], ids.contiguous(), offsets.contiguous(), weights, order,
        on_device(slices, ids.device), grad.float().contiguous(), sums,
        ids.numel(), len(features), samples, len(order), width, out_width, tiles_of_piece,
        IS_SHARD=row_starts is not None, WEIGHTED=weights is not None, ROUNDED=product_dtype is torch.bfloat16,
        INTERPRETED=INTERPRETED, SAMPLES=SAMPLES, OUT_COLUMNS=OUT_COLUMNS, DEPTH=DEPTH, **EXACT,
    )  # fmt: skip
    return sums.sum(0).to(dtype)


def tower_pool_pooled_backward(
    grad: Tensor, weight: Tensor, product_dtype: torch.dtype | None = None, tf32: bool = False
) -> Tensor:
    """As ``torch.ops.dmt.tower_pool_pooled_backward``; products of `tf32` are exact ones."""
    op = "tower_pool_pooled_backward"
    check_products(op, product_dtype)
    for name, matrix in (("grad", grad), ("weight", weight)):
        check_dimensions(op, name, matrix)
        check_matrix(op, name, matrix, matrix.shape, weight)
    check(weight.size(0) == grad.size(1), op, f"weight must be [{grad.size(1)}, D], got {list(weight.shape)}")
    (num_rows, out_width), width = grad.shape, weight.size(1)
    out = grad.new_empty((num_rows, width), dtype=torch.float32)
    if out.numel():
        pooled_kernel[(triton.cdiv(num_rows, SAMPLES), triton.cdiv(width, OUT_COLUMNS))](
            grad.float().contiguous(), weight, out, num_rows, out_width, width, weight.stride(0), weight.stride(1),
            ROUNDED=product_dtype is torch.bfloat16, INTERPRETED=INTERPRETED,
            SAMPLES=SAMPLES, OUT_COLUMNS=OUT_COLUMNS, DEPTH=DEPTH, **EXACT,
        )  # fmt: skip
    return out
