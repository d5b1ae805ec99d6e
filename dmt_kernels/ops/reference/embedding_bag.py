"""Oracle of the pooled lookup in plain PyTorch: one bag at a time. Differentiable by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
    """Pool the bags; arguments, letters and result as in `dmt_kernels.embedding_bag`. `sparse` changes nothing."""
    features = list(range(len(tables))) if feature_tables is None else list(feature_tables)
    poolings = [pooling] * len(features) if isinstance(pooling, str) else list(pooling)
    order = [0] if block_order is None else list(block_order)
    K, F = len(order), len(features)
    B = (offsets.numel() - 1) // (K * F) if F else 0
    dtype = tables[0].dtype if tables else torch.float32
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32

    rows: list[list[Tensor]] = [[] for _ in range(K * B)]  # the D_f wide pieces of every row of the output
    for k in range(K):
        for f, table in enumerate(features):
            for b in range(B):
                bag = (k * F + f) * B + b
                here = slice(int(offsets[bag]), int(offsets[bag + 1]))
                row = ids[here].long() - (0 if row_starts is None else row_starts[table])
                is_row = (row >= 0) & (row < tables[table].size(0))
                counted = is_row if row_starts is None else ids[here] >= 0
                if bounds == "error" and not bool((is_row | counted).all()):
                    raise RuntimeError(f"an id of table {table}, feature {f}, sample {b} is out of range")
                values = tables[table][row[is_row]].to(accumulator)
                if per_sample_weights is not None:
                    values = values * per_sample_weights[here][is_row].to(accumulator)[:, None]
                pooled = values.sum(0)
                if poolings[f] == "mean":
                    pooled = pooled / counted.sum().clamp(min=1)
                rows[order[k] * B + b].append(pooled)
    if not rows or not features:
        return torch.zeros(K * B, sum(tables[table].size(1) for table in features), dtype=out_dtype or dtype)
    return torch.stack([torch.cat(pieces) for pieces in rows]).to(out_dtype or dtype)
