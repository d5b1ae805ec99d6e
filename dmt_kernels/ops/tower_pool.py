"""Pooled lookup fused with a linear tower module: ``torch.ops.dmt.tower_pool``, documented, with fake and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmt_kernels.ops._direct import differentiable, is_eager, record
from dmt_kernels.ops.bag_arguments import (
    Ints,
    accumulator_dtype,
    bounds_code,
    pooled_shape,
    pooling_codes,
    warn_about_missing_ids,
)
from dmt_kernels.ops.bag_gradients import BagGradients, shaped_like_inputs
from dmt_kernels.ops.kept_rows import is_for_library, rounded_product
from dmt_kernels.ops.tower_pool_gradients import Once, ProductDtype, product_arguments


def tower_pool(
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    per_sample_weights: Tensor | None = None,
    feature_tables: Sequence[int] | None = None,
    pooling: str | Sequence[str] = "sum",
    row_starts: Sequence[int] | None = None,
    block_order: Sequence[int] | None = None,
    bounds: str = "error",
    sparse: bool = False,
    product_dtype: ProductDtype = None,
) -> Tensor:
    """Compute ``embedding_bag(...) @ weight.T + bias`` without the pooled matrix in memory.

    Pooled rows stay in float32 (float64 for float64 tables) between the lookup and the product, unless `product_dtype`
    rounds them, so for float16 and bfloat16 the result is rounded once and more precise than the two steps. On CUDA,
    bfloat16 products of 4096 rows or more may have the pooled rows in memory, in bfloat16: for as long as the op takes,
    or, where `weight` needs a gradient, until the backward, which is then one lookup quicker.

    Parameters
    ----------
    tables, ids, offsets, per_sample_weights, feature_tables, pooling, row_starts, block_order, bounds, sparse
        As for :func:`dmt_kernels.embedding_bag`, which gives the letters.
    weight : Tensor [C, D]
        As of ``torch.nn.Linear``: D is the sum of the dims of the features' tables. Of the dtype of the tables.
    bias : Tensor [C], optional
        Of the dtype of the tables.
    product_dtype : torch.dtype or "tf32", optional
        What pooled rows and weight are rounded to before they are multiplied; products are summed in float32 all the
        same. By default they are not rounded. ``torch.bfloat16``, for all but float64 tables, is about twice as fast on
        CPUs with AVX512-BF16 (which take denormals for zero); the backward then rounds its factors, too. ``"tf32"``,
        for the same tables, lets a GPU round them to 10 bits of mantissa for its tensor cores, also in the backward; a
        CPU, which has no such products, rounds nothing.

    Returns
    -------
    Tensor [K*B, C]
        Of the dtype of the tables. Differentiable in `tables`, `weight`, `bias` and `per_sample_weights`. Unless it has
        kept them, the backward looks the rows up again when `weight` needs a gradient, and then refuses tables that
        were modified in place in between.

    Raises
    ------
    RuntimeError
        Shapes, dtypes or offsets that do not fit; on the CPU an id out of range with ``bounds="error"``.
    ValueError
        An unknown `pooling`, `bounds` or `product_dtype`.
    """
    num_features = len(tables if feature_tables is None else feature_tables)
    if bounds == "warn":
        warn_about_missing_ids(tables, ids, offsets, feature_tables, row_starts, block_order)
    call = _call_keeping if _keeps(tables, offsets, weight, bias, feature_tables, product_dtype) else _call
    return call(
        list(tables),
        ids,
        offsets,
        weight,
        bias,
        per_sample_weights,
        feature_tables,
        pooling_codes(pooling, num_features),
        row_starts,
        block_order,
        bounds_code(bounds),
        sparse,
        *product_arguments(product_dtype),
    )


def _keeps(
    tables: Sequence[Tensor],
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    feature_tables: Ints,
    product_dtype: ProductDtype,
) -> bool:
    """Whether the call is recorded with its pooled rows. What does not fit is left to the op, which says so.

    In eager mode alone, where an autograd node can have what the op does not return.
    """
    if not (weight.is_cuda and weight.requires_grad and torch.is_grad_enabled() and is_eager()):
        return False
    features = range(len(tables)) if feature_tables is None else feature_tables
    if offsets.dim() != 1 or any(table.dim() != 2 for table in tables) or not set(features) <= set(range(len(tables))):
        return False
    rows, width = pooled_shape(tables, offsets, feature_tables)
    dtypes = {tensor.dtype for tensor in (*tables, weight, *([] if bias is None else [bias]))}
    fits = weight.dim() == 2 and weight.size(1) == width and (bias is None or bias.shape == weight.shape[:1])
    return fits and len(dtypes) == 1 and torch.float64 not in dtypes and is_for_library(weight, rows, product_dtype)


@torch.library.register_fake("dmt::tower_pool")
def _(
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
    rows, _ = pooled_shape(tables, offsets, feature_tables)
    return weight.new_empty(rows, weight.size(0))


def _remember(ctx: Any, inputs: Sequence[Any], kept: Tensor | None) -> None:
    tables, ids, offsets, weight, bias, weights, feature_tables, poolings, row_starts, block_order = inputs[:10]
    _, sparse, product_dtype, tf32 = inputs[10:]
    ctx.gradients = BagGradients(tables, feature_tables, poolings, row_starts, block_order, sparse)
    ctx.products = (product_dtype or accumulator_dtype(weight.dtype), tf32)
    ctx.bias_dtype = None if bias is None else bias.dtype
    looks_up = (weight.requires_grad and kept is None) or (weights is not None and weights.requires_grad)
    ctx.save_for_backward(ids, offsets, weight, weights, kept, *(tables if looks_up else []))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _remember(ctx, inputs, None)


def _multiply_kept(ctx: Any, *inputs: Any) -> Tensor:
    tables, ids, offsets, weight, bias, *bags, _sparse, product_dtype, _tf32 = inputs
    kept = torch.ops.dmt.embedding_bag(tables, ids, offsets, *bags, product_dtype)
    _remember(ctx, inputs, kept)
    return rounded_product(kept, weight.to(product_dtype).t(), weight.dtype, bias)


def _backward(ctx: Any, grad: Tensor, needs_grad: Sequence[Any]) -> tuple[Any, ...]:
    ids, offsets, weight, weights, kept, *tables = ctx.saved_tensors
    needed = [*needs_grad, *[False] * 6][:6]  # tables, ids, offsets, weight, bias, per_sample_weights
    # Torch's products take rounded factors: in one pass for both.
    is_narrow = kept is not None or is_for_library(weight, grad.size(0), ctx.products[0])
    factor = grad.to(torch.bfloat16 if is_narrow else accumulator_dtype(weight.dtype))
    if any(needed[0]) or needed[5]:
        pooled_grad = torch.ops.dmt.tower_pool_pooled_backward(factor, weight, *ctx.products)

    table_grads: list[Tensor | None] = [None] * len(needed[0])
    weight_grad = bias_grad = sample_weight_grad = None
    if any(needed[0]):
        table_grads = list(ctx.gradients.of_tables(pooled_grad, ids, offsets, weights))
    if needed[3] and kept is not None:
        # A sum over rows is so long that a library may add it up from pieces, which float32 keeps whole.
        weight_grad = Once.apply(rounded_product(factor.t(), kept, torch.float32).to(weight.dtype))
    elif needed[3]:
        layout = ctx.gradients.layout
        weight_grad = torch.ops.dmt.tower_pool_weight_backward(
            factor, tables, ids, offsets, weights, *layout, *ctx.products
        ).to(weight.dtype)
    if needed[4]:
        bias_grad = grad.sum(0, dtype=accumulator_dtype(weight.dtype)).to(ctx.bias_dtype)
    if needed[5]:
        sample_weight_grad = ctx.gradients.of_weights(pooled_grad, tables, ids, offsets, weights)
    grads = (table_grads, None, None, weight_grad, bias_grad, sample_weight_grad, *[None] * 8)
    return shaped_like_inputs(grads, needs_grad)


_call = differentiable(torch.ops.dmt.tower_pool.default, _setup_context, _backward)
_call_keeping = record("TowerPoolKeeping", _multiply_kept, _backward)
