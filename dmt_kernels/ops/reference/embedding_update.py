"""Oracle of the fused table update in plain PyTorch: every id adds its bag's gradient to its row, one by one."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dmt_kernels.ops.reference.wire_codec import message_key, words_of_rows


class TouchedRows(NamedTuple):
    """Rows of one table that a batch reads, ascending, and their summed gradients."""

    rows: Tensor  # [U] int64, relative to the table's tensor
    grads: Tensor  # [U, dim] float32 (float64 for float64 tables)


def touched_rows(
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
) -> Iterator[TouchedRows]:
    """Yield the touched rows of each table in turn; letters and arguments as in `embedding_update_`."""
    features = list(range(len(tables))) if feature_tables is None else list(feature_tables)
    poolings = [pooling] * len(features) if isinstance(pooling, str) else list(pooling)
    order = torch.tensor([0] if block_order is None else list(block_order))
    F, K = len(features), len(order)
    B = (offsets.numel() - 1) // (K * F) if F else 0
    dims = [tables[t].size(1) for t in features]
    columns = [sum(dims[:f]) for f in range(F)]

    # Ids before the first bag and after the last one belong to none.
    ids = ids[offsets[0] : offsets[-1]].long()
    weights = None if per_sample_weights is None else per_sample_weights[offsets[0] : offsets[-1]]

    # The bag (k, f, b) of every id, and the ids in the order in which a row's gradient is summed: (k, b, f, position).
    bag = torch.repeat_interleave(torch.arange(K * F * B), offsets.diff())
    k, f, b = bag // max(F * B, 1), bag // max(B, 1) % max(F, 1), bag % max(B, 1)
    canonical = torch.argsort((k * B + b) * F + f, stable=True)

    rows_of_feature = torch.tensor([tables[t].size(0) for t in features])
    missing = (ids < 0) if row_starts is not None else (ids < 0) | (ids >= rows_of_feature[f])
    bag_counts = torch.bincount(bag[~missing], minlength=K * F * B)

    for t, table in enumerate(tables):
        accumulate = torch.float64 if table.dtype == torch.float64 else torch.float32
        start = 0 if row_starts is None else row_starts[t]
        found, grads = [], []
        owned = ~missing & (ids >= start) & (ids < start + table.size(0)) & (torch.tensor(features) == t)[f]
        entries = canonical[owned[canonical]]
        for entry in entries.tolist():
            feature = int(f[entry])
            scale = torch.ones((), dtype=accumulate) if weights is None else weights[entry].to(accumulate)
            if poolings[feature] == "mean":
                scale = scale / bag_counts[bag[entry]].to(accumulate)
            row = grad[order[k[entry]] * B + b[entry], columns[feature] : columns[feature] + dims[feature]]
            found.append(ids[entry] - start)
            grads.append(scale * row.to(accumulate))
        if not found:
            yield TouchedRows(torch.empty(0, dtype=torch.int64), torch.empty(0, table.size(1), dtype=accumulate))
            continue
        rows, inverse = torch.stack(found).unique(return_inverse=True)
        sums = torch.zeros(len(rows), table.size(1), dtype=accumulate)
        for index, contribution in zip(inverse.tolist(), grads, strict=True):
            sums[index] += contribution
        yield TouchedRows(rows, sums)


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
    """Return the squares of `dmt_kernels.ops.embedding_row_squares`."""
    touched = touched_rows(
        tables,
        grad,
        ids,
        offsets,
        per_sample_weights=per_sample_weights,
        feature_tables=feature_tables,
        pooling=pooling,
        row_starts=row_starts,
        block_order=block_order,
    )
    return [
        (grads + weight_decay * table[rows].to(grads.dtype)).double().square().sum(1)
        for table, (rows, grads) in zip(tables, touched, strict=True)
    ]


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
    optimizer: str = "rowwise_adagrad",
    lr: float = 0.01,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    row_mean_squares: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    step: Tensor | None = None,
    column_starts: Sequence[int] | None = None,
) -> None:
    """Update the tables and states in place as `dmt_kernels.ops.embedding_update_` does (ids out of range: missing)."""
    touched = touched_rows(
        tables,
        grad,
        ids,
        offsets,
        per_sample_weights=per_sample_weights,
        feature_tables=feature_tables,
        pooling=pooling,
        row_starts=row_starts,
        block_order=block_order,
    )
    first = 0  # of this table's rows in row_mean_squares
    for t, (rows, g) in enumerate(touched):
        w = tables[t][rows].to(g.dtype)
        decayed = g + weight_decay * w
        if optimizer == "sgd":
            w = w - lr * decayed
        elif optimizer == "adagrad":
            state = states[t][rows] + decayed * decayed
            states[t][rows] = state
            w = w - lr * decayed / (_square_root(state) + eps)
        else:
            if row_mean_squares is None:
                mean_square = decayed.double().square().mean(1)
            else:
                mean_square = row_mean_squares[first : first + len(rows)]
            state = states[t][rows] + mean_square.to(g.dtype)
            states[t][rows] = state
            multiplier = (torch.tensor(lr, dtype=g.dtype) / (_square_root(state) + eps)).unsqueeze(1)
            w = (1 - multiplier * weight_decay) * w - multiplier * g
        if seeds is not None and step is not None and tables[t].itemsize == 2:
            key = message_key(seeds[t], int(step))
            row_start = 0 if row_starts is None else row_starts[t]
            column_start = 0 if column_starts is None else column_starts[t]
            words = words_of_rows(key, (rows + row_start).tolist(), column_start + w.shape[1])[:, column_start:]
            w = at_random(w, tables[t].dtype, words)
        tables[t][rows] = w.to(tables[t].dtype)
        first += len(rows)


def at_random(w: Tensor, dtype: torch.dtype, words: Tensor) -> Tensor:
    """One of the two neighbours of each element in `dtype`: the upper in magnitude as often as it is near."""
    bits, least = {torch.bfloat16: (7, -126), torch.float16: (10, -14)}[dtype]
    exponent = (w.double().frexp().exponent - 1).clamp(min=least)
    unit = torch.ldexp(torch.ones_like(w, dtype=torch.float64), exponent - bits)
    # As many random bits as float32 has digits behind the unit; of halves below their least normal number, 21.
    fixed_point = (dtype == torch.float16) & (w.abs() < 2.0**least)
    digits = torch.where(fixed_point, 21, 23 - bits)
    fraction = (words >> (32 - digits)).double() * torch.ldexp(torch.ones_like(unit), -digits)
    magnitude = w.double().abs() / unit
    magnitude = torch.where(fixed_point, torch.ldexp(torch.ldexp(magnitude, digits).floor(), -digits), magnitude)
    rounded = ((magnitude + fraction).floor() * unit).copysign(w)
    rounded = torch.where(rounded.abs() > torch.finfo(dtype).max, rounded * torch.inf, rounded)
    return torch.where(w.isfinite(), rounded, w).to(w.dtype)


def _square_root(x: Tensor) -> Tensor:
    """Correctly rounded for float32, which PyTorch's vectorised square root is not."""
    return x.double().sqrt().to(x.dtype)
