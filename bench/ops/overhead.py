"""What a call costs when there is nothing to do: on a batch without samples, over a group that has no wire."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from bench import baselines
from bench.agreement import Disagreement, agree
from bench.registry import DEFAULT, FULL, QUICK, Registry, Setting, Work
from bench.timing import Run
from dmt_kernels import ops
from dmt_kernels.spec import WireFormat

DIM = 16
TOWER_WIDTH = 4
RANKS, ROWS = 4, 8  # of a stage


def register(registry: Registry) -> None:
    for tables in (1, 26):
        effort = QUICK if tables == 1 else DEFAULT
        for grad in (False, True):
            way = "grad" if grad else "no_grad"
            registry.add(f"overhead/embedding_bag/F{tables}/{way}", partial(build_lookup, tables, grad), effort)
            registry.add(f"overhead/tower_pool/F{tables}/{way}", partial(build_tower, tables, grad), effort)
        registry.add(f"overhead/embedding_update_/F{tables}", partial(build_update, tables), effort)
    # These make a process group of this process, so they run only when asked for.
    registry.add("overhead/stage/in_place", partial(build_stage, True, None), FULL)
    registry.add("overhead/stage/packed", partial(build_stage, False, None), FULL)
    registry.add("overhead/stage/int8", partial(build_stage, False, WireFormat.INT8), FULL)


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


def build_stage(in_place: bool, wire_format: WireFormat | None, setting: Setting) -> Work:
    """Start and wait of a block for each of 4 ranks; torch's own copies in the group are in it."""
    if not dist.is_initialized():
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    assert dist.get_backend() == "fake", "a stage's overhead is measured over a group without a wire"
    group = dist.group.WORLD
    assert group is not None
    blocks, out = (list(torch.rand(RANKS, ROWS, DIM)) for _ in range(2))
    if not in_place:
        blocks, out = ([block.clone() for block in side] for side in (blocks, out))
    peers = {} if wire_format else baselines.contenders("stage", setting.peers, blocks, in_place)

    def ours() -> list[Tensor]:
        ops.stage_wait(ops.stage_start(blocks, out, group.group_name, wire_format))
        return out

    def check() -> None:
        mine, sent = ours()[0], blocks[0]  # what others send does not arrive
        if wire_format is not None:
            sent = ops.wire_decode(ops.wire_encode(sent, wire_format), DIM, wire_format)
        agree("ours and what was sent", mine, sent, exact=True)
        for name, peer in peers.items():
            agree(f"ours and {name}", mine, peer()[0], exact=True)

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
