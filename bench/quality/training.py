"""One run in one process: trained with early stopping, followed epoch by epoch, and scored with narrower payloads."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from bench.quality.partitions import choose_towers
from bench.quality.provenance import code
from bench.quality.records import Record
from dmt_kernels.train.assemble import Setup, build_model, make_loader, set_up
from dmt_kernels.train.config import TrainConfig, resolve_topology
from dmt_kernels.train.loop import Trainer
from dmt_kernels.train.predict import evaluate


class FollowedTrainer(Trainer):
    """Notes both held-out AUCs and the training time after every epoch.

    The time is that of the processor: on a core of its own a run of one thread takes as long by the clock, and other
    runs beside it, or a machine that stops it for a while, do not count.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, None)
        self.leads = False  # many runs at once would all speak
        self.curve: list[dict[str, Any]] = []
        self._seconds = 0.0

    def _train_epoch(self) -> None:
        began = time.process_time()
        super()._train_epoch()
        self._seconds += time.process_time() - began

    def _log(self, line: dict[str, Any]) -> None:
        if "valid_auc" in line:
            test = evaluate(self.model, self.loaders["test"], None, amp=self.config.amp)
            self.curve.append({"valid": line["valid_auc"], "test": test.auc, "seconds": round(self._seconds, 2)})


def config_of(spec: Record) -> TrainConfig:
    """Options of a run, checked, but for the towers' features."""
    return resolve_topology(TrainConfig(local=True, **spec["options"]), None, None)


def run(spec: Record, folder: Path) -> Record:
    """Train what `spec` says and return its record, which says under ``code`` what made it.

    Where training diverged, or there is no AUC, it has ``failed`` instead of figures.

    Parameters
    ----------
    spec : dict
        ``options`` of :class:`TrainConfig`, ``partition``: how towers are chosen and by what seed, and ``payloads`` to
        score the trained model with.
    folder : Path
        Where chosen towers are kept.
    """
    torch.set_num_threads(1)
    made = {"spec": spec, "code": code()}
    config = config_of(spec)
    if spec["partition"] is not None:
        strategy, seed = spec["partition"]
        config = dataclasses.replace(config, partition=choose_towers(strategy, config, seed, folder))
    try:
        setup = set_up(config)
        trainer = FollowedTrainer(setup)
        summary = trainer.run()
        if summary["auc"] is None or summary["valid_auc"] is None:
            return {**made, "failed": "test or validation rows are all of one class, and have no AUC"}
        payloads = {payload: _auc_with(trainer, payload) for payload in spec["payloads"]}
    except FloatingPointError as error:
        return {**made, "failed": str(error)}
    kept = ("auc", "logloss", "valid_auc", "best_auc", "best_epoch", "compression", "dense_params", "step_ms_median")
    return {**made, **{name: summary[name] for name in kept}, "payloads": payloads, "curve": trainer.curve}


def _auc_with(trainer: Trainer, payload: str) -> float | None:
    """Test AUC of the trained weights when rows travel as `payload`."""
    world, batch_size = trainer.setup.plan.topology.world, trainer.config.batch_size
    batch_size = max(1, batch_size // world) * world  # one that the ranks whose rows it rounds can share
    config = dataclasses.replace(trainer.config, payload=payload, batch_size=batch_size)
    setup = dataclasses.replace(trainer.setup, config=config)
    model = build_model(setup, None)
    model.load_state_dict(trainer.model.state_dict())
    device = next(model.parameters()).device
    return evaluate(model, make_loader(setup, "test", None, device), None, amp=trainer.config.amp).auc
