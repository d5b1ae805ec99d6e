"""Random bags of ids over several tables, for the tests of the ops that read them."""

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@dataclass
class Bags:
    """Arguments of `embedding_bag`: op(bags.tables, bags.ids, bags.offsets, **bags.options)."""

    tables: list[Tensor]
    ids: Tensor
    offsets: Tensor
    options: dict = field(default_factory=dict)

    @property
    def args(self):
        return self.tables, self.ids, self.offsets

    @property
    def features(self) -> list[int]:
        tables = self.options.get("feature_tables")
        return list(range(len(self.tables))) if tables is None else tables

    @property
    def width(self) -> int:
        return sum(self.tables[table].size(1) for table in self.features)

    def leaves(self) -> "Bags":
        """A copy whose tables and weights are leaves that need a gradient."""
        options = dict(self.options)
        if options.get("per_sample_weights") is not None:
            options["per_sample_weights"] = options["per_sample_weights"].detach().clone().requires_grad_()
        return Bags([t.detach().clone().requires_grad_() for t in self.tables], self.ids, self.offsets, options)

    def differentiable(self) -> list[Tensor]:
        weights = self.options.get("per_sample_weights")
        return self.tables + ([] if weights is None else [weights])


def random_bags(
    *,
    seed=0,
    dims=(5, 3),
    rows=(11, 7),
    features=None,
    blocks=1,
    samples=4,
    longest=5,
    dtype=torch.float32,
    id_dtype=torch.int64,
    pooling="sum",
    weighted=False,
    shard=False,
    missing=False,
    block_order=None,
    slack=0,
) -> Bags:
    """Bags of 0 to `longest` ids. `shard`: tables that lack the first and last rows that ids name. `missing`: some ids
    are out of range. `slack`: ids before the first bag and after the last one."""
    generator = torch.Generator().manual_seed(seed)
    features_of = list(range(len(dims))) if features is None else list(features)
    lengths = torch.randint(0, longest + 1, (blocks * len(features_of) * samples,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]) + slack
    row_starts = [2 * i + 1 for i in range(len(dims))] if shard else None
    ids = torch.randint(0, 1000, (int(offsets[-1]) + slack,), generator=generator)
    for group in range(blocks * len(features_of)):
        table = features_of[group % len(features_of)]
        here = slice(int(offsets[group * samples]), int(offsets[(group + 1) * samples]))
        ids[here] %= rows[table] + (2 * row_starts[table] if shard else 0)
    if missing:
        wild = torch.tensor([-1, -(2**31), 2**31 - 1, 1000])
        choice = wild[torch.randint(0, len(wild), ids.shape, generator=generator)]
        ids = torch.where(torch.rand(ids.shape, generator=generator) < 0.2, choice, ids)
    options = {"pooling": pooling, "feature_tables": features, "row_starts": row_starts, "block_order": block_order}
    if weighted:
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        options["per_sample_weights"] = torch.randn(ids.shape, generator=generator, dtype=accumulator)
    if missing:
        options["bounds"] = "none"
    tables = [
        torch.randn(r, d, generator=generator, dtype=torch.float64).to(dtype) for r, d in zip(rows, dims, strict=True)
    ]
    return Bags(tables, ids.to(id_dtype), offsets, options)


@st.composite
def bags(draw, dtypes=tuple(DTYPES), whole=False):
    """Any bags; `whole`: no shards, no missing ids, one block: what `torch.nn.functional.embedding_bag` can do."""
    num_tables = draw(st.integers(1, 3))
    features = draw(st.none() | st.lists(st.integers(0, num_tables - 1), max_size=4))
    num_features = num_tables if features is None else len(features)
    blocks = 1 if whole else draw(st.integers(1, 3))
    poolings = st.sampled_from(["sum", "mean"])
    return random_bags(
        seed=draw(st.integers(0, 2**16)),
        dims=draw(st.lists(st.sampled_from([1, 3, 4, 8, 17, 33]), min_size=num_tables, max_size=num_tables)),
        rows=draw(st.lists(st.integers(1, 9), min_size=num_tables, max_size=num_tables)),
        features=features,
        blocks=blocks,
        samples=draw(st.integers(0, 5)) if num_features else 0,
        longest=draw(st.integers(0, 6)),
        dtype=draw(st.sampled_from(dtypes)),
        id_dtype=draw(st.sampled_from([torch.int32, torch.int64])),
        pooling=draw(poolings | st.lists(poolings, min_size=num_features, max_size=num_features)),
        weighted=draw(st.booleans()),
        shard=False if whole else draw(st.booleans()),
        missing=False if whole else draw(st.booleans()),
        block_order=draw(st.permutations(range(blocks)) if blocks > 1 else st.none()),
        slack=draw(st.integers(0, 2)),
    )
