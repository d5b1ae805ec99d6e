"""Oracle of the pooled lookup fused with a linear tower module: the two steps, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.ops.reference.embedding_bag import embedding_bag


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
    product_dtype: torch.dtype | None = None,
) -> Tensor:
    """Pool the bags and multiply; arguments and result as in `dmt_kernels.tower_pool`."""
    accumulator = torch.float64 if weight.dtype == torch.float64 else torch.float32
    pooled = embedding_bag(
        tables,
        ids,
        offsets,
        per_sample_weights=per_sample_weights,
        feature_tables=feature_tables,
        pooling=pooling,
        row_starts=row_starts,
        block_order=block_order,
        bounds=bounds,
        out_dtype=accumulator,
        sparse=sparse,
    )
    rounded = product_dtype or accumulator
    out = pooled.to(rounded).to(accumulator) @ weight.to(rounded).to(accumulator).t()
    if bias is not None:
        out = out + bias.to(accumulator)
    return out.to(weight.dtype)
