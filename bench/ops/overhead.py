"""What a call costs when there is nothing to do: on a batch without samples."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench import baselines
from bench.agreement import Disagreement
from bench.registry import DEFAULT, QUICK, Registry, Run, Setting, Work
from dmt_kernels import ops

DIM = 16
TOWER_WIDTH = 4


def register(registry: Registry) -> None:
    for tables in (1, 26):
        effort = QUICK if tables == 1 else DEFAULT
        for grad in (False, True):
            way = "grad" if grad else "no_grad"
            registry.add(f"overhead/embedding_bag/F{tables}/{way}", partial(build_lookup, tables, grad), effort)
            registry.add(f"overhead/tower_pool/F{tables}/{way}", partial(build_tower, tables, grad), effort)
        registry.add(f"overhead/embedding_update_/F{tables}", partial(build_update, tables), effort)


def build_lookup(count: int, grad: bool, setting: Setting) -> Work:
    """The forward call; with grad it records what a backward pass would need."""
    tables, ids, offsets = empty_batch(count, grad)
    peers = baselines.contenders("empty_batch", setting.peers, tables)
    return forward(lambda: ops.embedding_bag(tables, ids, offsets), peers, DIM * count, grad)


def build_tower(count: int, grad: bool, setting: Setting) -> Work:
    tables, ids, offsets = empty_batch(count, grad)
    weight = torch.zeros(TOWER_WIDTH, DIM * count, requires_grad=grad)
    peers = baselines.contenders("empty_tower", setting.peers, tables, weight)
    return forward(lambda: ops.tower_pool(tables, ids, offsets, weight), peers, TOWER_WIDTH, grad)


def build_update(count: int, setting: Setting) -> Work:
    """The peer's backward pass has the update in it."""
    tables, ids, offsets = empty_batch(count, grad=False)
    grad = torch.zeros(0, DIM * count)
    before = [table.clone() for table in tables]
    peers = baselines.contenders("empty_update", setting.peers, tables, grad)

    def ours() -> None:
        ops.embedding_update_(tables, [], grad, ids, offsets, optimizer="sgd")

    def check() -> None:
        ours()
        if not all(torch.equal(table, old) for table, old in zip(tables, before, strict=True)):
            raise Disagreement("ours: an update without samples changed a table")
        for peer in peers.values():
            peer()

    return Work(ours, peers, check, cold=False)


def empty_batch(count: int, grad: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    """Tables, ids and offsets."""
    tables = [torch.zeros(10, DIM, requires_grad=grad) for _ in range(count)]
    return tables, torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)


def forward(ours: Run, peers: dict[str, Run], width: int, grad: bool) -> Work:
    if not grad:
        peers = {name: torch.no_grad()(run) for name, run in peers.items()}

    def check() -> None:
        for who, run in {"ours": ours, **peers}.items():
            result = run()
            if result.shape != (0, width) or (who != "fbgemm" and result.requires_grad != grad):
                raise Disagreement(f"{who}: shape {tuple(result.shape)}, requires_grad {result.requires_grad}")

    return Work(ours, peers, check, cold=False)
