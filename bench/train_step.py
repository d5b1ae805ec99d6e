"""A whole training step, loading excluded: two stages, without and with tower modules, against flat."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

import torch
from torch import Tensor

from bench.agreement import Disagreement, agree
from bench.registry import DEFAULT, FULL, QUICK, Registry, Setting, Work
from dmt_kernels.comm import Mesh
from dmt_kernels.train.assemble import build_model, set_up
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.data import Loader
from dmt_kernels.train.step import TrainStep

BATCHES = 4  # that the steps go round in
CHECKED_STEPS = 3


def register(registry: Registry) -> None:
    for model in ("dlrm", "dcn"):
        for samples in (256, 1024):
            effort = {("dlrm", 256): QUICK, ("dlrm", 1024): DEFAULT}.get((model, samples), FULL)
            for module in ("none", model):
                name = f"step/{model}/B{samples}/" + ("pass_through" if module == "none" else f"{module}_towers")
                registry.add(name, partial(build, model, module, samples), effort)


class Stepper:
    """Trains on a few batches, again and again."""

    def __init__(self, config: TrainConfig, mesh: Mesh | None) -> None:
        setup = set_up(config)
        model = build_model(setup, mesh)
        self._step = TrainStep(model, mesh, optimizer=config.dense_optimizer, lr=config.dense_lr)
        loader = Loader(
            setup.dataset,
            "train",
            global_batch=config.batch_size,
            rank=0 if mesh is None else mesh.rank,
            world=1 if mesh is None else mesh.topology.world,
            feature_order=setup.plan.partition.features,
            device=next(model.parameters()).device,
            workers=0,
        )
        self._batches = itertools.cycle(list(loader))

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

    def check() -> None:
        losses = torch.stack([ours() for _ in range(CHECKED_STEPS)])
        flat_losses = torch.stack([theirs() for _ in range(CHECKED_STEPS)])
        if not bool(losses.isfinite().all()):
            raise Disagreement(f"the loss is {losses.tolist()}")
        if module == "none":
            agree("losses, two stages and flat", losses, flat_losses, exact=True)
        elif mesh.rank == 0:
            alone = Stepper(dataclasses.replace(sptt, local=True), None)
            expected = torch.stack([alone() for _ in range(CHECKED_STEPS)])
            agree("losses, ranks and one process", losses, expected)

    return Work(ours, {"flat": theirs}, check)
