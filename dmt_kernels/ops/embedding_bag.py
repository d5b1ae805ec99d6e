"""Pooled lookup of many tables: ``torch.ops.dmt.embedding_bag`` with documentation, fake kernels and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmt_kernels.ops._direct import differentiable, mutating
from dmt_kernels.ops.bag_arguments import Ints, bounds_code, pooled_shape, pooling_codes, warn_about_missing_ids
from dmt_kernels.ops.bag_gradients import BagGradients, shaped_like_inputs


def embedding_bag(
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    *,
    per_sample_weights: Tensor | None = None,
    feature_tables: Sequence[int] | None = None,
    pooling: str | Sequence[str] = "sum",
    row_starts: Sequence[int] | None = None,
    block_order: Sequence[int] | None = None,
    bounds: str = "error",
    out_dtype: torch.dtype | None = None,
    sparse: bool = False,
) -> Tensor:
    """Look up and pool the bags of many features in many tables.

    K blocks (source ranks), F features, B samples per block, N ids. Bags are ordered (block, feature, sample): bag
    ``(k*F + f)*B + b`` holds ``ids[offsets[bag]:offsets[bag + 1]]``. Sums are kept in float32 (float64 for float64
    tables) and rounded once, and do not depend on the number of threads.

    Parameters
    ----------
    tables : sequence of Tensor [E_i, D_i]
        All of one dtype: float64 (CPU only), float32, float16 or bfloat16. Columns must be adjacent in memory; rows
        need not be.
    ids : Tensor [N], int32 or int64
    offsets : Tensor [K*F*B + 1], int64
        Ascending, within ``[0, N]``. With F = 0 it has one entry and the output is empty.
    per_sample_weights : Tensor [N], optional
        Factor of each id's row, applied before a mean is divided. Any of the four dtypes.
    feature_tables : sequence of F ints, optional
        Index of each feature's table; several features may share one. Default: feature f uses table f.
    pooling : "sum", "mean", or one of them per feature
        A mean divides by the number of ids in the bag that are not missing; an empty bag gives zeros.
    row_starts : sequence of int, one per table, optional
        Table i holds the rows ``[row_starts[i], row_starts[i] + E_i)`` of a larger table. Ids of other rows contribute
        nothing, but count in a mean; negative ids are missing.
    block_order : permutation of 0..K-1, optional
        Block k fills the rows ``block_order[k]*B ...`` of the output. Gives K; default one block.
    bounds : "error", "warn" or "none"
        What an id out of range is: an error that names it, a missing id that a Python warning counts, or silently a
        missing id. A missing id contributes nothing and does not count in a mean. Under ``torch.compile`` "warn" is
        silent. **On CUDA "error" raises nothing here**: nobody waits for the device, the id counts as missing, updates
        that meet one are left out, and :func:`~dmt_kernels.ops.raise_missing_ids` raises when it is called. "warn"
        waits.
    out_dtype : torch.dtype, optional
        Default: that of the tables. float64 goes with float64 only.
    sparse : bool
        Whether the gradients of the tables are uncoalesced sparse COO tensors rather than dense ones (eager mode only).

    Returns
    -------
    Tensor [K*B, D]
        The features' columns side by side, D = sum of the dims of the features' tables. Differentiable in `tables` and
        `per_sample_weights`. Tables are kept for the backward only if the weights need a gradient.

    Raises
    ------
    RuntimeError
        Shapes, dtypes or offsets that do not fit; on the CPU an id out of range with ``bounds="error"``;
        on CUDA more than 2^31 - 1 ids.
    ValueError
        An unknown `pooling` or `bounds`.
    """
    num_features = len(tables if feature_tables is None else feature_tables)
    bounds_mode = bounds_code(bounds)
    if bounds == "warn":
        warn_about_missing_ids(tables, ids, offsets, feature_tables, row_starts, block_order)
    return _call(
        list(tables),
        ids,
        offsets,
        per_sample_weights,
        feature_tables,
        pooling_codes(pooling, num_features),
        row_starts,
        block_order,
        bounds_mode,
        out_dtype,
        sparse,
    )


def embedding_bag_(
    out: Tensor,
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    *,
    per_sample_weights: Tensor | None = None,
    feature_tables: Sequence[int] | None = None,
    pooling: str | Sequence[str] = "sum",
    row_starts: Sequence[int] | None = None,
    block_order: Sequence[int] | None = None,
    bounds: str = "error",
) -> None:
    """Do :func:`embedding_bag` into memory that is there, without gradients.

    A large result in new memory costs its pages, which the system has to clear: about as much as the lookup.

    Parameters
    ----------
    out : Tensor [K*B, D]
        Contiguous, in the tables' dtype; overwritten.
    tables, ids, offsets, per_sample_weights, feature_tables, pooling, row_starts, block_order, bounds
        As in :func:`embedding_bag`; with ``bounds="error"`` ids are checked before anything is written.

    Raises
    ------
    RuntimeError
        Shapes, dtypes or offsets that do not fit; on the CPU an id out of range with ``bounds="error"``;
        on CUDA more than 2^31 - 1 ids.
    ValueError
        An unknown `pooling` or `bounds`.
    """
    if bounds == "warn":
        warn_about_missing_ids(tables, ids, offsets, feature_tables, row_starts, block_order)
    _call_into(
        out,
        list(tables),
        ids,
        offsets,
        per_sample_weights,
        feature_tables,
        pooling_codes(pooling, len(tables if feature_tables is None else feature_tables)),
        row_starts,
        block_order,
        bounds_code(bounds),
    )


@torch.library.register_fake("dmt::embedding_bag_")
def _(
    out: Tensor,
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None = None,
    feature_tables: Ints = None,
    poolings: Ints = None,
    row_starts: Ints = None,
    block_order: Ints = None,
    bounds: int = 0,
) -> None:
    return None


@torch.library.register_fake("dmt::embedding_bag")
def _(
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
    dtype = out_dtype or (tables[0].dtype if tables else torch.float32)
    return offsets.new_empty(pooled_shape(tables, offsets, feature_tables), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tables, ids, offsets, weights, feature_tables, poolings, row_starts, block_order, _, _, sparse = inputs
    ctx.gradients = BagGradients(tables, feature_tables, poolings, row_starts, block_order, sparse)
    ctx.weighted = weights is not None
    kept = tables if weights is not None and weights.requires_grad else []
    ctx.save_for_backward(ids, offsets, *([] if weights is None else [weights]), *kept)


def _backward(ctx: Any, grad: Tensor, needed: Sequence[Any]) -> tuple[Any, ...]:
    ids, offsets, *rest = ctx.saved_tensors
    weights, kept = (rest[0], rest[1:]) if ctx.weighted else (None, [])
    table_grads: list[Tensor | None] = [None] * len(needed[0])
    if any(needed[0]):
        table_grads = list(ctx.gradients.of_tables(grad, ids, offsets, weights))
    weight_grad = ctx.gradients.of_weights(grad, kept, ids, offsets, weights) if kept else None
    return shaped_like_inputs((table_grads, None, None, weight_grad, *[None] * 7), needed)


_call = differentiable(torch.ops.dmt.embedding_bag.default, _setup_context, _backward)
_call_into = mutating(torch.ops.dmt.embedding_bag_.default, 1)
