"""Gradients of a tower module: in its weight, ``torch.ops.dmt.tower_pool_weight_backward``, and in pooled rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dmt_kernels.ops._direct import differentiable_once
from dmt_kernels.ops.bag_arguments import Ints, accumulator_dtype, pooled_shape, pooling_codes
from dmt_kernels.spec import InputError

ProductDtype = torch.dtype | Literal["tf32"] | None


def product_arguments(product_dtype: ProductDtype) -> tuple[torch.dtype | None, bool]:
    """What the ops call `product_dtype` and `tf32`, which is no dtype of torch."""
    if isinstance(product_dtype, str) and product_dtype != "tf32":
        raise InputError(f"product_dtype is a dtype or 'tf32', not {product_dtype!r}")
    return (None, True) if product_dtype == "tf32" else (product_dtype, False)


def tower_pool_weight_backward(
    grad: Tensor,
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    *,
    per_sample_weights: Tensor | None = None,
    feature_tables: Sequence[int] | None = None,
    pooling: str | Sequence[str] = "sum",
    row_starts: Sequence[int] | None = None,
    block_order: Sequence[int] | None = None,
    product_dtype: ProductDtype = None,
) -> Tensor:
    """Compute ``grad.T @ embedding_bag(...)``, looked up piece by piece, or as :func:`dmt_kernels.tower_pool` says.

    Parameters
    ----------
    grad : Tensor [K*B, C]
        Gradient of the output of :func:`dmt_kernels.tower_pool`. Of any floating dtype.
    tables, ids, offsets, per_sample_weights, feature_tables, pooling, row_starts, block_order
        As for :func:`dmt_kernels.embedding_bag`, which gives the letters. Ids out of range are missing ids.
    product_dtype : torch.dtype or "tf32", optional
        As for :func:`dmt_kernels.tower_pool`: what the factors are rounded to.

    Returns
    -------
    Tensor [C, D]
        Of the dtype of the tables, or without any of `grad`. Its bits do not depend on the number of threads. Not
        differentiable.

    Raises
    ------
    RuntimeError
        Shapes, dtypes or offsets that do not fit.
    ValueError
        An unknown `pooling` or `product_dtype`.
    """
    num_features = len(tables if feature_tables is None else feature_tables)
    return torch.ops.dmt.tower_pool_weight_backward(
        grad,
        list(tables),
        ids,
        offsets,
        per_sample_weights,
        feature_tables,
        pooling_codes(pooling, num_features),
        row_starts,
        block_order,
        *product_arguments(product_dtype),
    )


def tower_pool_pooled_backward(grad: Tensor, weight: Tensor, *, product_dtype: ProductDtype = None) -> Tensor:
    """Compute ``grad @ weight``: the gradient of the pooled matrix, which is what tables are updated with.

    A product of our own, since nobody promises that torch's has the same bits for any number of threads, or sums in
    float32 when factors are rounded; nor is it faster.

    Parameters
    ----------
    grad : Tensor [K*B, C]
        Gradient of the output of :func:`dmt_kernels.tower_pool`. Of any floating dtype.
    weight : Tensor [C, D]
        The module's, or some columns of it.
    product_dtype : torch.dtype or "tf32", optional
        As for :func:`dmt_kernels.tower_pool`: what the factors are rounded to.

    Returns
    -------
    Tensor [K*B, D]
        In the dtype of sums: float64 for float64 weights, else float32.

    Raises
    ------
    RuntimeError
        Shapes or dtypes that do not fit.
    ValueError
        An unknown `product_dtype`.
    """
    return torch.ops.dmt.tower_pool_pooled_backward(grad, weight, *product_arguments(product_dtype))


@torch.library.register_fake("dmt::tower_pool_weight_backward")
def _(
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
    _, width = pooled_shape(tables, offsets, feature_tables)
    return grad.new_empty((grad.size(1), width), dtype=tables[0].dtype if tables else grad.dtype)


@torch.library.register_fake("dmt::tower_pool_pooled_backward")
def _(grad: Tensor, weight: Tensor, product_dtype: torch.dtype | None = None, tf32: bool = False) -> Tensor:
    return grad.new_empty((grad.size(0), weight.size(1)), dtype=accumulator_dtype(weight.dtype))


_refuse = differentiable_once("tower_pool", "tower_pool_weight_backward", "tower_pool_pooled_backward")


class Once(torch.autograd.Function):
    """A gradient made by torch's own operations, which would let one differentiate it as if rows were constants."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        """Return it as it is."""
        return grad.view_as(grad)

    backward = staticmethod(_refuse)
