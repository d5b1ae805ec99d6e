"""What one writes in PyTorch alone: a bag per feature, side by side, and a product behind them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.bags import Bags
from bench.registry import Run


def embedding_bag(bags: Bags) -> Run:
    lookups = _lookups(bags)

    @torch.no_grad()
    def run() -> Tensor:
        return torch.cat([F.embedding_bag(**lookup) for lookup in lookups], dim=1)

    return run


def tower_pool(bags: Bags, weight: Tensor) -> Run:
    pooled = embedding_bag(bags)
    transposed = weight.t()
    return lambda: torch.mm(pooled(), transposed)


def empty_batch(tables: list[Tensor]) -> Run:
    ids, offsets = torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)

    def run() -> Tensor:
        bags = [F.embedding_bag(ids, t, offsets, mode="sum", include_last_offset=True) for t in tables]
        return torch.cat(bags, dim=1)

    return run


def _lookups(bags: Bags) -> list[dict]:
    samples = bags.spec.shape.samples
    lookups = []
    for f, table in enumerate(bags.tables):
        offsets = bags.offsets[f * samples : (f + 1) * samples + 1]
        here = slice(int(offsets[0]), int(offsets[-1]))
        lookups.append(
            {
                "input": bags.ids[here],
                "weight": table,
                "offsets": (offsets - offsets[0]).to(bags.ids.dtype),
                "mode": bags.options["pooling"],
                "per_sample_weights": None if bags.weights is None else bags.weights[here].to(table.dtype),
                "include_last_offset": True,
            }
        )
    return lookups
