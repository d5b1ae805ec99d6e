"""Pooled lookup against the peers."""

from __future__ import annotations

from functools import partial

import torch

from bench import baselines
from bench.agreement import agree
from bench.bags import SHAPES, Bags, BagSpec, make_bags
from bench.ceilings import Ceilings
from bench.registry import DEFAULT, FULL, QUICK, Registry, Setting, Work
from dmt_kernels import ops
from dmt_kernels.ops.reference.embedding_bag import embedding_bag as oracle

CHECKED_SAMPLES = 16  # by the oracle, which takes one bag at a time; the peers check all of them
POOLINGS = ("sum", "mean", "weighted")
IDS = ("uniform", "zipf")


def register(registry: Registry) -> None:
    specs = [
        BagSpec(SHAPES[shape], ids, id_dtype, dtype, pooling)
        for shape, dtype in _TABLES
        for id_dtype in (torch.int64, torch.int32)
        for pooling in POOLINGS
        for ids in IDS
    ]
    for spec in specs:
        registry.add(f"embedding_bag/{spec.name}", partial(build, spec), _effort(spec), spec.tables_key)


# In the order in which tables are shared by neighbours.
_TABLES = [
    (shape, dtype)
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    for shape in ("S1", "jagged100", "mixed", "S2", "S3", "tiny")
]


def _effort(spec: BagSpec) -> int:
    shape, changed = spec.shape.name, spec != BagSpec(spec.shape, spec.ids)
    if shape == "tiny":
        return FULL
    if not changed:
        return QUICK if spec.ids == "uniform" and shape in ("S1", "S3") else DEFAULT
    # One change at a time from int64 ids, fp32 tables and sums.
    alone = spec in {
        BagSpec(spec.shape, id_dtype=torch.int32),
        BagSpec(spec.shape, dtype=torch.float16),
        BagSpec(spec.shape, dtype=torch.bfloat16),
        BagSpec(spec.shape, pooling="mean"),
        BagSpec(spec.shape, pooling="weighted"),
    }
    narrow = {"S1": True, "jagged100": spec.dtype == torch.float16, "S2": spec.dtype == torch.float16}
    return DEFAULT if alone and narrow.get(shape, False) else FULL


def build(spec: BagSpec, setting: Setting) -> Work:
    bags = make_bags(spec)
    tables = bags.tables

    def ours() -> torch.Tensor:
        return ops.embedding_bag(tables, bags.ids, bags.offsets, **bags.options)

    peers = baselines.contenders("embedding_bag", setting.peers, bags)

    def check() -> None:
        result = ours()
        head = bags.head(min(CHECKED_SAMPLES, spec.shape.samples))
        expected = oracle(tables, head.ids, head.offsets, **head.options)
        agree("ours and the oracle", result[: len(expected)], expected)
        for name, peer in peers.items():
            agree(f"ours and {name}", result, peer())

    return Work(
        ours,
        peers,
        check,
        partial(lookup_floor, bags),
        work_bytes=float(bags.row_places()[1].sum()) + out_bytes(bags),
    )


def lookup_floor(bags: Bags, ceilings: Ceilings) -> dict[str, float]:
    """The rows of these very ids in this very order, then the result."""
    return {
        "rows": ceilings.read_rows(bags.memory, *bags.row_places()),
        "result": ceilings.write(out_bytes(bags)),
    }


def out_bytes(bags: Bags) -> int:
    return bags.spec.shape.samples * bags.width * bags.memory.element_size()
