"""The backward pass with the optimizer in it, against FBGEMM's."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import baselines
from bench.agreement import agree
from bench.bags import SHAPES, Bags, BagSpec, make_bags, tables_in, to_offsets
from bench.ceilings import Ceilings
from bench.memory import huge
from bench.registry import DEFAULT, FULL, QUICK, Registry, Setting, Work
from dmt_kernels import ops
from dmt_kernels.ops.reference.embedding_update import embedding_update_ as oracle

SETTINGS: dict[str, Any] = {"lr": 0.01, "eps": 1e-8}
CHECKED_ROWS = 16  # of each table, by the oracle, which takes one id at a time; FBGEMM checks all of them
SORTING_BYTES = 8  # of a key, read and written once to bring the ids of a row together


def register(registry: Registry) -> None:
    for shape in ("S1", "jagged100", "S2", "S3", "tiny"):
        for dtype in (torch.float32, torch.float16):
            for optimizer in ("rowwise_adagrad", "sgd"):
                for ids in ("uniform", "zipf"):
                    spec = BagSpec(SHAPES[shape], ids, dtype=dtype)
                    effort = FULL
                    if dtype == torch.float32 and (shape == "S1" or (shape in ("S2", "S3") and optimizer != "sgd")):
                        quick = (shape, optimizer, ids) == ("S1", "rowwise_adagrad", "uniform")
                        effort = QUICK if quick else DEFAULT
                    registry.add(
                        f"embedding_update_/{spec.name}/{optimizer}",
                        partial(build, spec, optimizer),
                        effort,
                        spec.tables_key,
                    )


def build(spec: BagSpec, optimizer: str, setting: Setting) -> Work:
    bags = make_bags(spec)
    tables, states = bags.source.copy("ours"), zero_states(bags, optimizer)
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(spec.shape.samples, bags.width, generator=generator).to(spec.dtype)
    views = tables_in(tables, spec.shape)
    theirs = bags.source.copy("theirs") if setting.peers else tables
    peers = baselines.contenders("embedding_update", setting.peers, bags, theirs, grad, optimizer=optimizer, **SETTINGS)

    def ours() -> None:
        ops.embedding_update_(views, states, grad, bags.ids, bags.offsets, optimizer=optimizer, **SETTINGS)

    def check() -> None:
        ours()
        for peer in peers.values():
            peer()
        check_update(bags, tables, theirs if peers else None, grad, optimizer)

    return Work(
        ours,
        peers,
        check,
        partial(update_floor, bags, tables, optimizer),
        work_bytes=2 * float(touched_places(bags)[1].sum()) + grad.numel() * grad.element_size(),
    )


def check_update(bags: Bags, after: Tensor, theirs: Tensor | None, grad: Tensor, optimizer: str) -> None:
    """One step from `bags.memory`: some rows of each table against the oracle, all touched ones against the peer."""
    shape = bags.spec.shape
    before, feature, bag = bags.tables, bags.feature_of_ids(), bags.bag_of_ids()
    rows = [ids.unique() for ids in (bags.ids[feature == f] for f in range(bags.features))]
    some = [touched[:: max(1, len(touched) // CHECKED_ROWS)] for touched in rows]
    chosen = torch.zeros(bags.features, shape.rows, dtype=torch.bool)
    place = torch.zeros(bags.features, shape.rows, dtype=torch.int64)
    for f, few in enumerate(some):
        chosen[f, few], place[f, few] = True, torch.arange(len(few))
    taken = chosen[feature, bags.ids.long()]
    lengths = torch.bincount(bag[taken], minlength=len(bags.offsets) - 1)
    small = [table[few].clone() for table, few in zip(before, some, strict=True)]
    states = [] if optimizer == "sgd" else [torch.zeros(len(few)) for few in some]
    new_ids = place[feature, bags.ids.long()][taken]
    oracle(small, states, grad, new_ids, to_offsets(lengths), optimizer=optimizer, **SETTINGS)
    for f, (table, few, expected) in enumerate(zip(tables_in(after, shape), some, small, strict=True)):
        agree(f"ours and the oracle, table {f}", table[few], expected)
    if theirs is not None:
        for f, (mine, peer, touched) in enumerate(
            zip(tables_in(after, shape), tables_in(theirs, shape), rows, strict=True)
        ):
            agree(f"ours and fbgemm, table {f}", mine[touched], peer[touched])


def update_floor(bags: Bags, tables: Tensor, optimizer: str, ceilings: Ceilings) -> dict[str, float]:
    """Touched rows and states read and written once, gradients read row by row of the tables, ids sorted once."""
    offsets, sizes = touched_places(bags)
    parts = {"rows": ceilings.rewrite_rows(tables, offsets, sizes)}
    if optimizer == "rowwise_adagrad":
        shape = bags.spec.shape
        states = huge((bags.features * shape.rows,), torch.float32).fill_(0)
        places = (bags.feature_of_ids() * shape.rows + bags.ids).unique() * 4
        parts["states"] = ceilings.rewrite_rows(states, places, torch.full_like(places, 4), of="states")
    parts["gradients"] = ceilings.read_rows(*gradient_places(bags), of="gradient pieces")
    parts["sort"] = ceilings.copy(SORTING_BYTES * len(bags.ids))
    return parts


def touched_places(bags: Bags) -> tuple[Tensor, Tensor]:
    """Where the touched rows lie in the tables' memory, each once, and their bytes."""
    places = torch.stack(bags.row_places(), dim=1).unique(dim=0)
    return places[:, 0].contiguous(), places[:, 1].contiguous()


def gradient_places(bags: Bags) -> tuple[Tensor, Tensor, Tensor]:
    """A gradient's memory, and where the ids' pieces of it lie in the order of the rows that they go to."""
    shape, item = bags.spec.shape, bags.memory.element_size()
    grad = huge((shape.samples * bags.width * item,), torch.uint8).fill_(0)
    columns = to_offsets(torch.tensor(shape.dims))[:-1]
    feature, sample = bags.feature_of_ids(), bags.bag_of_ids() % shape.samples
    places, sizes = bags.row_places()
    order = places.argsort(stable=True)
    starts = (sample * bags.width + columns[feature]) * item
    return grad, starts[order], sizes[order]


def zero_states(bags: Bags, optimizer: str) -> list[Tensor]:
    rows = bags.spec.shape.rows
    return [] if optimizer == "sgd" else list(huge((bags.features, rows), torch.float32).unbind())
