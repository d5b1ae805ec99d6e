"""Oracle of the lookup into messages: the lookup, then a pass that copies or encodes each block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def embedding_bag_blocks_(
    blocks: list[Tensor],
    tables: list[Tensor],
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None = None,
    feature_tables: Any = None,
    poolings: Any = None,
    row_starts: Any = None,
    block_order: Any = None,
    bounds: int = 0,
    format: int = 0,
) -> None:
    """Do as the op; arguments as in its schema."""
    pooled = torch.ops.dmt.embedding_bag(
        tables, ids, offsets, per_sample_weights, feature_tables, poolings, row_starts, block_order, bounds
    )
    for block, rows in zip(blocks, pooled.unflatten(0, (len(blocks), -1)), strict=True):
        if block.dtype is not torch.uint8:
            block.copy_(rows)
        elif block.is_contiguous():
            torch.ops.dmt.wire_encode_blocks_(block.flatten(), [rows], format)
        else:
            block.copy_(torch.ops.dmt.wire_encode(rows, format))
