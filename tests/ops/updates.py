"""Batches for the fused table update, and what the update makes of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from dmt_kernels.ops import embedding_update_
from tests.ops.bags import DTYPES

OPTIMIZERS = ["sgd", "adagrad", "rowwise_adagrad"]


@dataclass(frozen=True)
class Problem:
    """Tables, one batch of bags (block, feature, sample), and the gradient of the pooled output [K*B, D]."""

    tables: list[Tensor]
    feature_tables: list[int]
    pooling: list[str]
    block_order: list[int]
    samples: int
    ids: Tensor
    offsets: Tensor
    weights: Tensor | None
    grad: Tensor

    @property
    def bags(self) -> dict[str, Any]:
        return {
            "per_sample_weights": self.weights,
            "feature_tables": self.feature_tables,
            "pooling": self.pooling,
            "block_order": self.block_order,
        }

    def columns(self, feature: int) -> slice:
        dims = [self.tables[t].size(1) for t in self.feature_tables]
        return slice(sum(dims[:feature]), sum(dims[: feature + 1]))

    def bag_ids(self) -> dict[tuple[int, int, int], tuple[Tensor, Tensor | None]]:
        """The ids and weights of bag (k, f, b)."""
        keys = [
            (k, f, b)
            for k in range(len(self.block_order))
            for f in range(len(self.feature_tables))
            for b in range(self.samples)
        ]
        bounds = self.offsets.tolist()
        slices = [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
        return {
            key: (self.ids[part], None if self.weights is None else self.weights[part])
            for key, part in zip(keys, slices, strict=True)
        }

    def with_bags(
        self,
        bags: dict[tuple[int, int, int], tuple[Tensor, Tensor | None]],
        keys: list[tuple[int, int, int]],
        **changes: Any,
    ) -> Problem:
        """The same problem with the bags `keys`, in that order."""
        lengths = torch.tensor([len(bags[key][0]) for key in keys], dtype=torch.int64)
        weights = None if self.weights is None else torch.cat([bags[key][1] for key in keys])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return replace(self, ids=torch.cat([bags[key][0] for key in keys]), weights=weights, offsets=offsets, **changes)


def problem(
    seed: int,
    *,
    shapes: list[tuple[int, int]],
    feature_tables: list[int],
    pooling: list[str],
    blocks: int = 1,
    samples: int = 5,
    longest: int = 6,
    weighted: bool = False,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
    wide_ids: bool = True,
    missing: float = 0.0,
) -> Problem:
    """A Zipf-like batch: bags of 0 to `longest` ids, most of them small."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (blocks * len(feature_tables) * samples,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    rows = torch.tensor([shapes[t][0] for t in feature_tables]).repeat_interleave(samples).repeat(blocks)
    rows = rows.repeat_interleave(lengths)
    count = len(rows)
    ids = ((rows + 1).double().pow(torch.rand(count, generator=generator).double()) - 1).long().minimum(rows - 1)
    ids[torch.rand(count, generator=generator) < missing] = -1
    tables = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    width = sum(shapes[t][1] for t in feature_tables)
    return Problem(
        tables=tables,
        feature_tables=feature_tables,
        pooling=pooling,
        block_order=torch.randperm(blocks, generator=generator).tolist(),
        samples=samples,
        ids=ids if wide_ids else ids.int(),
        offsets=offsets,
        weights=torch.randn(count, generator=generator).to(accumulator(dtype)) if weighted else None,
        grad=torch.randn(blocks * samples, width, generator=generator).to(grad_dtype or dtype),
    )


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def new_states(optimizer: str, tables: list[Tensor]) -> list[Tensor]:
    """States that already hold something, so that adding to them shows."""
    if optimizer == "sgd":
        return []
    shapes = [table.shape if optimizer == "adagrad" else table.shape[:1] for table in tables]
    return [torch.full(shape, 0.1, dtype=accumulator(tables[0].dtype)) for shape in shapes]


def updated(case: Problem, optimizer: str, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    tables = [table.clone() for table in case.tables]
    states = new_states(optimizer, tables)
    options = {"lr": 0.1, "eps": 1e-6, "bounds": "none"} | options
    embedding_update_(tables, states, case.grad, case.ids, case.offsets, optimizer=optimizer, **case.bags, **options)
    return tables, states


def all_updated(case: Problem, optimizer: str, **options: Any) -> list[Tensor]:
    """Tables, then states."""
    tables, states = updated(case, optimizer, **options)
    return tables + states


def assert_same_bits(ours: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


MANY = {
    "shapes": [(13, 7), (4, 20), (101, 3)],
    "feature_tables": [0, 1, 0, 2],
    "pooling": ["sum", "mean", "mean", "sum"],
    "blocks": 3,
}


@st.composite
def problems(draw: st.DrawFn, **fixed: Any) -> Problem:
    tables = draw(st.integers(1, 3))
    features = draw(st.integers(1, 4))
    options = {
        "shapes": [(draw(st.integers(1, 40)), draw(st.sampled_from([1, 3, 8, 17, 32]))) for _ in range(tables)],
        "feature_tables": [draw(st.integers(0, tables - 1)) for _ in range(features)],
        "pooling": [draw(st.sampled_from(["sum", "mean"])) for _ in range(features)],
        "blocks": draw(st.integers(1, 3)),
        "samples": draw(st.integers(0, 6)),
        "longest": draw(st.sampled_from([0, 1, 9])),
        "weighted": draw(st.booleans()),
        "dtype": draw(st.sampled_from(DTYPES)),
        "wide_ids": draw(st.booleans()),
        "missing": draw(st.sampled_from([0.0, 0.3])),
    }
    return problem(draw(st.integers(0, 2**31)), **(options | fixed))
