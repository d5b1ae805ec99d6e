"""What a call costs when there is nothing to do."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench import baselines
from bench.agreement import Disagreement
from bench.registry import DEFAULT, QUICK, Registry, Setting, Work
from dmt_kernels import ops


def register(registry: Registry) -> None:
    for tables in (1, 26):
        for grad in (False, True):
            name = f"overhead/embedding_bag/F{tables}/{'grad' if grad else 'no_grad'}"
            registry.add(name, partial(build, tables, grad), QUICK if tables == 1 else DEFAULT)


def build(count: int, grad: bool, setting: Setting) -> Work:
    """The forward call, on a batch without samples; with grad it records what a backward pass would need."""
    tables = [torch.zeros(10, 16, requires_grad=grad) for _ in range(count)]
    ids, offsets = torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)

    def ours() -> Tensor:
        return ops.embedding_bag(tables, ids, offsets)

    peers = baselines.contenders("empty_batch", setting.peers, tables)
    if not grad:
        peers = {name: torch.no_grad()(run) for name, run in peers.items()}

    def check() -> None:
        for who, run in {"ours": ours, **peers}.items():
            result = run()
            if result.shape != (0, 16 * count) or (who != "fbgemm" and result.requires_grad != grad):
                raise Disagreement(f"{who}: shape {tuple(result.shape)}, requires_grad {result.requires_grad}")

    return Work(ours, peers, check, cold=False)
