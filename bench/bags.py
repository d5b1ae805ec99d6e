"""The lookups that ops are timed on: tables, ids, bags, and where the bytes lie.

Letters: ``F`` features, ``E`` rows per table, ``D`` width of a row, ``B`` samples, ``L`` ids in a bag.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.memory import OneSlot, huge, random_values

ZIPF_EXPONENT = 1.05
_tables = OneSlot()


@dataclass(frozen=True)
class Shape:
    name: str
    rows: int  # E
    dims: tuple[int, ...]  # D of each of F features
    samples: int  # B
    length: int  # L
    jagged: bool = False  # lengths are drawn from a geometric distribution of mean L


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("S1", 500_000, (128,) * 8, 2048, 20),
        Shape("S2", 500_000, (64,) * 26, 2048, 1),
        Shape("S3", 200_000, (128,) * 26, 4096, 1),
        Shape("jagged100", 500_000, (128,) * 8, 512, 100, jagged=True),
        Shape("mixed", 500_000, (16, 48, 64, 128, 128, 192, 192, 256), 2048, 20),  # the bytes of S1
        Shape("tiny", 1000, (16, 8, 20), 64, 5, jagged=True),
    )
}


@dataclass(frozen=True)
class BagSpec:
    shape: Shape
    ids: str = "uniform"  # or "zipf"
    id_dtype: torch.dtype = torch.int64
    dtype: torch.dtype = torch.float32
    pooling: str = "sum"  # or "mean", or "weighted": a sum with per-sample weights

    @property
    def name(self) -> str:
        words = (self.shape.name, self.ids, short(self.id_dtype), short(self.dtype), self.pooling)
        return "/".join(words)

    @property
    def tables_key(self) -> Hashable:
        """The same for cases that can share tables."""
        return self.shape.rows, self.shape.dims, self.dtype


class Tables:
    """All tables of a shape, one after the other in `memory`, which nobody may write to, and copies to be updated."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.memory = random_values(shape.rows * sum(shape.dims), dtype, seed=0)
        self._copies: dict[str, Tensor] = {}

    def copy(self, owner: str) -> Tensor:
        """What `memory` holds, in the owner's own pages; they are kept, since new ones take longer than a copy."""
        if owner not in self._copies:
            self._copies[owner] = huge(tuple(self.memory.shape), self.memory.dtype)
        return self._copies[owner].copy_(self.memory)


@dataclass
class Bags:
    """Arguments of the ops."""

    spec: BagSpec
    source: Tables
    ids: Tensor
    offsets: Tensor
    weights: Tensor | None

    @property
    def memory(self) -> Tensor:
        return self.source.memory

    @property
    def tables(self) -> list[Tensor]:
        return tables_in(self.memory, self.spec.shape)

    @property
    def features(self) -> int:
        return len(self.spec.shape.dims)

    @property
    def width(self) -> int:
        return sum(self.spec.shape.dims)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "per_sample_weights": self.weights,
            "pooling": "mean" if self.spec.pooling == "mean" else "sum",
        }

    def head(self, samples: int) -> Bags:
        """The first samples of every feature."""
        shape = self.spec.shape
        firsts = [self.offsets[f * shape.samples : f * shape.samples + samples + 1] for f in range(self.features)]
        taken = torch.cat([torch.arange(int(first[0]), int(first[-1])) for first in firsts])
        lengths = torch.cat([first.diff() for first in firsts])
        return dataclasses.replace(
            self,
            spec=dataclasses.replace(self.spec, shape=dataclasses.replace(shape, samples=samples)),
            ids=self.ids[taken],
            offsets=to_offsets(lengths),
            weights=None if self.weights is None else self.weights[taken],
        )

    def feature_of_ids(self) -> Tensor:
        """``[N]`` feature that each id belongs to."""
        lengths = self.offsets[:: self.spec.shape.samples].diff()
        return torch.arange(self.features).repeat_interleave(lengths)

    def bag_of_ids(self) -> Tensor:
        """``[N]`` bag ``f*B + b`` that each id is in."""
        return torch.arange(len(self.offsets) - 1).repeat_interleave(self.offsets.diff())

    def row_places(self) -> tuple[Tensor, Tensor]:
        """``[N]`` each: byte in `memory` where an id's row begins, and the row's bytes."""
        feature, dims = self.feature_of_ids(), torch.tensor(self.spec.shape.dims)
        sizes = dims * self.memory.element_size()
        starts = to_offsets(sizes * self.spec.shape.rows)[:-1]
        return starts[feature] + self.ids.long() * sizes[feature], sizes[feature]


def make_bags(spec: BagSpec) -> Bags:
    """Tables are those of the case before if they have the same shape and dtype."""
    shape = spec.shape
    source = _tables.get(spec.tables_key, lambda: Tables(shape, spec.dtype))
    generator = torch.Generator().manual_seed(1)
    bags = len(shape.dims) * shape.samples
    lengths = torch.full((bags,), shape.length)
    if shape.jagged:
        lengths = torch.empty(bags).geometric_(1 / (1 + shape.length), generator=generator).long() - 1
    offsets = to_offsets(lengths)
    count = int(offsets[-1])
    ids = draw_ids(spec.ids, count, shape.rows, generator).to(spec.id_dtype)
    weights = torch.rand(count, generator=generator) if spec.pooling == "weighted" else None
    return Bags(spec, source, ids, offsets, weights)


def draw_ids(distribution: str, count: int, rows: int, generator: torch.Generator) -> Tensor:
    """Uniform ids, or ids of Zipf's law whose popular rows are scattered over the table."""
    if distribution == "uniform":
        return torch.randint(rows, (count,), generator=generator)
    cumulative = torch.arange(1, rows + 1, dtype=torch.float64).pow_(-ZIPF_EXPONENT).cumsum_(0)
    chance = torch.rand(count, dtype=torch.float64, generator=generator) * cumulative[-1]
    rank = torch.searchsorted(cumulative, chance).clamp_(max=rows - 1)
    return torch.randperm(rows, generator=generator)[rank]


def tables_in(memory: Tensor, shape: Shape) -> list[Tensor]:
    """Views ``[E, D]`` of memory that holds one table after the other."""
    ends = list(itertools.accumulate((shape.rows * dim for dim in shape.dims), initial=0))
    return [memory[a:b].view(shape.rows, -1) for a, b in itertools.pairwise(ends)]


def to_offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def free_tables() -> None:
    _tables.clear()


def short(dtype: torch.dtype) -> str:
    """``int64``, ``fp32``, ``bf16``."""
    return str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")
