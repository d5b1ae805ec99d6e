"""Fused optimizer step of embedding tables: ``torch.ops.dmt.embedding_update_`` and its row statistic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.ops._direct import mutating
from dmt_kernels.ops.bag_arguments import Ints, bounds_code, pooling_codes, warn_about_missing_ids
from dmt_kernels.spec import InputError

_OPTIMIZERS = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 2}


def embedding_update_(
    tables: Sequence[Tensor],
    states: Sequence[Tensor],
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor,
    *,
    per_sample_weights: Tensor | None = None,
    feature_tables: Sequence[int] | None = None,
    pooling: str | Sequence[str] = "sum",
    row_starts: Sequence[int] | None = None,
    block_order: Sequence[int] | None = None,
    bounds: str = "error",
    optimizer: str = "rowwise_adagrad",
    lr: float = 0.01,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    row_mean_squares: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    step: Tensor | None = None,
    column_starts: Sequence[int] | None = None,
) -> None:
    """Apply one optimizer step, in place, to the rows that `embedding_bag` looked up.

    K blocks (source ranks), F features, B samples per block, N ids, D the summed dims of the features; the bags, and
    the arguments that describe them, are those of `embedding_bag`. With w a row and g the sum of its gradients (per id:
    the weight, divided by the count for a mean, times the bag's gradient),

    * ``sgd``: ``w -= lr * (g + weight_decay*w)``;
    * ``adagrad``: ``h = g + weight_decay*w; state += h**2; w -= lr * h / (sqrt(state) + eps)``;
    * ``rowwise_adagrad``: ``state += mean(h**2); m = lr / (sqrt(state) + eps); w = (1 - m*weight_decay)*w - m*g``.

    This is the arithmetic of FBGEMM's ``EXACT_SGD``, ``EXACT_ADAGRAD`` and ``EXACT_ROWWISE_ADAGRAD`` with L2 weight
    decay. Rows that no bag names stay as they are.

    The gradients of a row are summed one by one in the order (block, sample, feature, position in the bag), in float32
    (float64 for float64 tables). Neither the number of threads nor the split of a table into rows or columns changes a
    bit of the result, but for the statistic of a row that is split by columns (see `row_mean_squares`). Arithmetic is
    in the type of the sums; float16 and bfloat16 weights are rounded when stored: to nearest, ties to even, or, with
    `seeds`, up or down at random so that the mean is right, by a hash of (seed, step, row, column). Rows and columns
    count in the whole table (`row_starts`, `column_starts`), so its parts get the bits that it would get.

    Parameters
    ----------
    tables : sequence of Tensor [E_i, D_i]
        Mutated. All of one dtype; columns adjacent in memory. They must not overlap.
    states : sequence of Tensor
        Mutated. One per table, float32 (float64 for float64 tables): [E_i, D_i] for adagrad, [E_i] for rowwise_adagrad.
        None (an empty sequence) for sgd.
    grad : Tensor [K*B, D]
        Gradient of the pooled output, in the tables' dtype or in float32 (float64 tables: float64).
    ids : Tensor [N], int32 or int64
    offsets : Tensor [K*F*B + 1], int64
    per_sample_weights, feature_tables, pooling, row_starts, block_order, bounds
        As given to the lookup. With ``bounds="error"`` nothing is written when an id is out of range; on CUDA
        :func:`~dmt_kernels.ops.raise_missing_ids` says so.
    optimizer : "sgd", "adagrad" or "rowwise_adagrad"
    lr, eps, weight_decay : float
    row_mean_squares : Tensor [U], float64, optional
        For rowwise_adagrad of tables split by columns: ``mean(h**2)`` over the whole row, for every touched row in the
        order of `embedding_row_squares`, concatenated. Default: computed from the columns that are here. On CUDA
        nobody compares sizes: rows beyond its end get NaN.
    seeds : sequence of int, optional
        One per table: round float16 and bfloat16 weights at random. Wider ones are stored as they are.
    step : Tensor [], int64
        With `seeds`: another number in every step, on the tables' device.
    column_starts : sequence of int, optional
        One per table that holds columns of a wider one: the first of them. Default: 0.

    Raises
    ------
    RuntimeError
        Shapes, dtypes or offsets that do not fit; on the CPU an id out of range with ``bounds="error"``.
    ValueError
        An unknown `pooling`, `bounds` or `optimizer`.
    """
    if optimizer not in _OPTIMIZERS:
        raise InputError(f"optimizer is 'sgd', 'adagrad' or 'rowwise_adagrad', not {optimizer!r}")
    bounds_mode = bounds_code(bounds)
    if bounds == "warn":
        warn_about_missing_ids(tables, ids, offsets, feature_tables, row_starts, block_order)
    _call(
        list(tables),
        list(states),
        grad,
        ids,
        offsets,
        per_sample_weights,
        feature_tables,
        pooling_codes(pooling, len(tables if feature_tables is None else feature_tables)),
        row_starts,
        block_order,
        bounds_mode,
        _OPTIMIZERS[optimizer],
        lr,
        eps,
        weight_decay,
        row_mean_squares,
        seeds,
        step,
        column_starts,
    )


def embedding_row_squares(
    tables: Sequence[Tensor],
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor,
    *,
    per_sample_weights: Tensor | None = None,
    feature_tables: Sequence[int] | None = None,
    pooling: str | Sequence[str] = "sum",
    row_starts: Sequence[int] | None = None,
    block_order: Sequence[int] | None = None,
    weight_decay: float = 0.0,
) -> list[Tensor]:
    """Return what a column shard contributes to the statistic of row-wise Adagrad.

    The shards of a table add up their results (they touch the same rows, hence results of one shape), divide by the dim
    of the whole table and hand all tables' means, concatenated, to `embedding_update_` as `row_mean_squares`. The sum
    is kept in float64, where the squares of float32 are exact: the shards then give the whole table's bits unless the
    mean lies within some 1e-15 (relative) of a rounding boundary of float32. For float64 they agree to rounding.

    Parameters
    ----------
    tables, grad, ids, offsets, per_sample_weights, feature_tables, pooling, row_starts, block_order, weight_decay
        As `embedding_update_`. Ids out of range are missing ids.

    Returns
    -------
    list of Tensor [U_i], float64
        For each table ``sum((g + weight_decay*w)**2)`` over the columns here, for its U_i touched rows, ascending. On
        CUDA the call waits for the device, to know U_i.

    Raises
    ------
    RuntimeError
        Shapes, dtypes or offsets that do not fit.
    ValueError
        An unknown `pooling`.
    """
    return torch.ops.dmt.embedding_row_squares(
        list(tables),
        grad,
        ids,
        offsets,
        per_sample_weights,
        feature_tables,
        pooling_codes(pooling, len(tables if feature_tables is None else feature_tables)),
        row_starts,
        block_order,
        weight_decay,
    )


@torch.library.register_fake("dmt::embedding_update_")
def _(
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
    return None


@torch.library.register_fake("dmt::embedding_row_squares")
def _(
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
    # How many rows are touched is known only once the ids are.
    return [grad.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.float64) for _ in tables]


_call = mutating(torch.ops.dmt.embedding_update_.default, 2)
