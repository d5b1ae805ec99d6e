"""A whole training step, loading excluded: two stages, without and with tower modules, against flat and the peers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from functools import partial
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from bench import baselines
from bench.agreement import TOLERANCES, Disagreement, agree
from bench.registry import DEFAULT, FULL, QUICK, Registry, Setting, Work
from bench.timing import Run
from dmt_kernels.comm import Mesh
from dmt_kernels.embedding.table_shards import TableShards
from dmt_kernels.train.assemble import build_model, set_up
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.data import Loader
from dmt_kernels.train.step import TrainStep

BATCHES = 4  # that the steps go round in
CHECKED_STEPS = 3
UNDECIDED = 1 / 256  # share of samples that may have a ReLU whose input is 0 but for rounding; there is rarely one


def register(registry: Registry) -> None:
    for model in ("dlrm", "dcn"):
        for samples in (256, 1024):
            effort = {("dlrm", 256): QUICK, ("dlrm", 1024): DEFAULT}.get((model, samples), FULL)
            for module in ("none", model):
                name = f"step/{model}/B{samples}/" + ("pass_through" if module == "none" else f"{module}_towers")
                registry.add(name, partial(build, model, module, samples), effort)


class Trainer(Protocol):
    """A peer's step: trains on the next batch and returns this rank's own mean loss."""

    def __call__(self) -> Tensor: ...

    def tables(self) -> dict[str, Tensor]: ...


class Stepper:
    """Trains on a few batches, again and again."""

    def __init__(self, config: TrainConfig, mesh: Mesh | None) -> None:
        self.setup = set_up(config)
        self.model = build_model(self.setup, mesh)
        self._step = TrainStep(self.model, mesh, **config.dense_training())
        loader = Loader(
            self.setup.dataset,
            "train",
            global_batch=config.batch_size,
            rank=0 if mesh is None else mesh.rank,
            world=1 if mesh is None else mesh.topology.world,
            feature_order=self.setup.plan.partition.features,
            device=next(self.model.parameters()).device,
            workers=0,
        )
        self.batches = list(loader)
        self._batches = itertools.cycle(self.batches)

    def __call__(self) -> Tensor:
        return self._step(next(self._batches))


def build(model: str, module: str, samples: int, setting: Setting) -> Work:
    """`samples` is the batch of a rank."""
    mesh = setting.mesh
    assert mesh is not None
    topology = mesh.topology
    flat = TrainConfig(
        data=f"synthetic:{BATCHES * samples * topology.world}",
        model=model,
        exchange="flat",
        towers=topology.towers,
        members=topology.members,
        batch_size=samples * topology.world,
        embedding_dim=64,
        compression=4,
        device=mesh.device.type,
    )
    sptt = dataclasses.replace(flat, exchange="sptt", tower_module=module)
    ours, theirs = Stepper(sptt, mesh), Stepper(flat, mesh)
    peers = baselines.contenders("train_step", setting.peers, theirs.model, theirs.setup, mesh, theirs.batches)

    def check() -> None:
        losses = torch.stack([ours() for _ in range(CHECKED_STEPS)])
        flat_losses = _steps_beside(peers, theirs, mesh)
        if not bool(losses.isfinite().all()):
            raise Disagreement(f"the loss is {losses.tolist()}")
        if module == "none":
            agree("losses, two stages and flat", losses, flat_losses, exact=True)
        elif mesh.rank == 0:
            alone = Stepper(dataclasses.replace(sptt, local=True), None)
            expected = torch.stack([alone() for _ in range(CHECKED_STEPS)])
            agree("losses, ranks and one process", losses, expected)

    return Work(ours, {"flat": theirs, **peers}, check)


def _steps_beside(peers: Mapping[str, Run], flat: Stepper, mesh: Mesh) -> Tensor:
    """Losses of flat's steps, which the peers have made too, with the same losses and, after the first, tables."""
    flat_losses = []
    peer_losses: dict[str, list[Tensor]] = {name: [] for name in peers}
    for step in range(CHECKED_STEPS):
        flat_losses.append(flat())
        for name, peer in peers.items():
            peer_losses[name].append(peer())
            if step == 0:
                _agree_on_tables(name, cast(Trainer, peer).tables(), flat, mesh)
    expected = torch.stack(flat_losses)
    for name, losses in peer_losses.items():
        mean = torch.stack(losses)
        dist.all_reduce(mean, group=mesh.dense)
        agree(f"losses, flat and {name}", mean / mesh.topology.world, expected)
    return expected


def _agree_on_tables(name: str, tables: Mapping[str, Tensor], flat: Stepper, mesh: Mesh) -> None:
    """Rows differ by rounding, but for those of samples with a ReLU at 0.

    Rounding decides whether such a unit passes a gradient on. Later steps are not compared: Adam turns what is left of
    one sample's gradient into a step of full length for parameters that have no other, and with them all rows change.
    """
    shards, differing = cast(TableShards, flat.model.exchange.shards), torch.zeros((), device=mesh.device)
    for shard, rows in zip(shards.shards, shards.tables.buffers(), strict=True):
        if shard.table.name in tables:
            table = tables[shard.table.name]
            part = table[shard.row_start : shard.row_stop, shard.col_start : shard.col_stop]
            rtol, scaled = TOLERANCES[rows.dtype]
            close = torch.isclose(part, rows, rtol=rtol, atol=scaled * float(rows.abs().max()))
            differing += (~close.all(dim=1)).sum()
    dist.all_reduce(differing, group=mesh.dense)
    allowed = UNDECIDED * len(flat.batches[0].sparse.ids) * mesh.topology.world
    if differing > allowed:
        raise Disagreement(f"{int(differing)} rows of tables, flat and {name}: rounding may change {int(allowed)}")
