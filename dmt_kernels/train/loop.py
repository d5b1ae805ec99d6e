"""A training run on one rank, from options to summary."""

import contextlib
import gc
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from dmt_kernels.comm import Mesh, check_agreement, traffic
from dmt_kernels.ops.groups import naming_failures
from dmt_kernels.spec import Batch, InputError
from dmt_kernels.train import checkpoint
from dmt_kernels.train.assemble import Setup, build_model, connect, make_loader, save_layout, set_up_training
from dmt_kernels.train.averaging import AveragedWeights
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.metrics import Scores
from dmt_kernels.train.output import RunFolder
from dmt_kernels.train.predict import evaluate
from dmt_kernels.train.progress import TrainProgress
from dmt_kernels.train.step import TrainStep
from dmt_kernels.train.summary import count_parameters, embedding_parameters, loader_samples_per_s, traffic_per_step
from dmt_kernels.train.timing import StepTimer


class Trainer:
    """Trains one model; all ranks do the same, rank 0 also writes and shows.

    Parameters
    ----------
    setup : Setup
        Data and plan.
    mesh : Mesh or None
        The ranks; None for one process.
    """

    def __init__(self, setup: Setup, mesh: Mesh | None) -> None:
        self.setup, self.config, self.mesh = setup, setup.config, mesh
        self.leads = mesh is None or mesh.rank == 0
        self.folder = None if self.config.out is None else RunFolder(self.config.out)
        self.model = build_model(setup, mesh)
        self.train_step = TrainStep(self.model, mesh, **self.config.dense_training())
        device = next(self.model.parameters()).device
        self.loaders = {
            split: make_loader(setup, split, mesh, device, shuffle=split == "train")
            for split in ("train", "valid", "test")
        }
        self.timer = StepTimer(device)
        self.steps = self.config.steps or (self.config.epochs or 1) * len(self.loaders["train"])
        decay = self.config.average_weights
        self.average = None if decay is None else AveragedWeights(self.model, decay, self.steps)
        self.step = 0
        self.sent: Counter[tuple[str, str]] = Counter()

    def run(self) -> dict[str, Any]:
        """Train, evaluate and return the summary."""
        if self.folder is not None and self.leads:
            self.folder.clear()
            self.config.save(self.folder.config)
            save_layout(self.setup, self.folder.layout)
        best: Scores | None = None
        best_epoch, epoch = 0, 0
        gc.freeze()  # or the collector walks through all of torch now and then, some 5 % of a step
        with TrainProgress(self.title, self.steps, show=self.leads) as self.progress:
            while self.step < self.steps:
                with contextlib.nullcontext() if self.average is None else self.average.set_aside():
                    self._train_epoch(epoch)
                epoch += 1
                valid = evaluate(self.model, self.loaders["valid"], self.mesh, amp=self.config.amp)
                self._log({"epoch": epoch, "step": self.step, "valid_auc": valid.auc, "valid_logloss": valid.logloss})
                self.progress.step(self.step, f"epoch {epoch} valid AUC {_number(valid.auc)}")
                if self.config.early_stop is None or valid.beats(best):
                    best, best_epoch = valid, epoch
                    if self.config.early_stop is not None:
                        self._keep()
                elif epoch - best_epoch >= self.config.early_stop:
                    break
        assert best is not None
        if self.config.early_stop is None:
            self._save()
        elif best_epoch != epoch:
            self._return_to_kept()
        summary = self._summary(best, best_epoch, epoch)
        if self.folder is not None and self.leads:
            self.folder.write_summary(summary)
        return summary

    @property
    def title(self) -> str:
        """What the run is, in a few words."""
        module = "" if self.config.tower_module == "none" else f" + {self.config.tower_module} towers"
        return f"{self.config.model} {self.config.exchange}{module}"

    def _train_epoch(self, epoch: int) -> None:
        losses: list[torch.Tensor] = []
        samples, began = 0, time.perf_counter()
        traffic.reset()
        self.timer.restart()
        for batch, next_batch in self._batches(epoch):
            losses.append(self.train_step(batch, next_batch))
            if self.average is not None:
                self.average.step()
            samples += batch.global_samples
            self.timer.step(batch.global_samples)
            self.step += 1
            self.progress.step(self.step)
            if self.step % self.config.log_every == 0 or self.step == self.steps:
                loss = torch.stack(losses).mean().item()  # waits for the device, hence not every step
                self.train_step.missing_ids.wait()
                rate = samples / (time.perf_counter() - began)
                self._log({"epoch": epoch + 1, "step": self.step, "loss": loss, "samples_per_s": rate})
                self.progress.step(self.step, f"loss {loss:.4f}")
                losses, samples, began = [], 0, time.perf_counter()
        self.train_step.missing_ids.wait()  # or an epoch would be scored and kept that has left out batches
        self.sent.update(traffic.sent_bytes())

    def _batches(self, epoch: int) -> Iterator[tuple[Batch, Batch | None]]:
        """The batches of an epoch, or of what is left of the run, each with the one after it."""
        loader = self.loaders["train"]
        loader.set_epoch(epoch)
        ahead = itertools.islice(loader, self.steps - self.step)
        batch = next(ahead, None)
        while batch is not None:
            next_batch = next(ahead, None)
            yield batch, next_batch
            batch = next_batch

    def _keep(self) -> None:
        """Keep the model as it is: in its folder, or in memory where there is none."""
        if self.folder is not None:
            self._save()
        else:
            self._kept = {name: value.clone() for name, value in self.model.state_dict().items()}

    def _return_to_kept(self) -> None:
        if self.folder is not None:
            checkpoint.load(self.model, self.folder.model, self.mesh)
        else:
            self.model.load_state_dict(self._kept)

    def _save(self) -> None:
        if self.folder is not None:
            checkpoint.save(self.model, self.folder.model, self.mesh)

    def _log(self, line: dict[str, Any]) -> None:
        if self.folder is not None and self.leads:
            self.folder.append_metrics(line)

    def _summary(self, valid: Scores, best_epoch: int, epochs: int) -> dict[str, Any]:
        test = valid
        if self.loaders["test"].samples:
            test = evaluate(self.model, self.loaders["test"], self.mesh, amp=self.config.amp)
        step_ms, samples_per_s = self.timer.figures()
        config, topology = self.config, self.setup.plan.topology
        return {
            "auc": test.auc,
            "logloss": test.logloss,
            "valid_auc": valid.auc,
            "valid_logloss": valid.logloss,
            "best_auc": self.setup.dataset.best_auc,
            "step_ms_median": step_ms,
            "samples_per_s": samples_per_s,
            "loader_samples_per_s": loader_samples_per_s(self.loaders["train"], self.mesh),
            **traffic_per_step(self.sent, self.step, self.mesh),
            "compression": self.model.exchange.realised_compression,
            "widest_tower": self.model.exchange.widest_tower,
            "world_size": 1 if self.mesh is None else topology.world,
            "towers": topology.towers,
            "members": topology.members,
            "dense_params": count_parameters(self.model, self.mesh),
            "embedding_params": embedding_parameters(self.setup.plan),
            "epochs": epochs,
            "best_epoch": best_epoch,
            "steps": self.step,
            "seed": config.seed,
            "model": config.model,
            "exchange": config.exchange,
            "tower_module": config.tower_module,
            "placement": self.model.exchange.placement,
            "data": self.setup.dataset.name,
        }


def train_rank(config: TrainConfig) -> dict[str, Any] | InputError:
    """Do one rank's part of a run.

    Returns
    -------
    dict or InputError
        The summary; or what some rank found wrong before anything was written, on all ranks alike.
    """
    setup, wrong = None, None
    try:
        setup = set_up_training(config)
        if config.out is not None:
            RunFolder(config.out).check_writable(config.overwrite)
    except InputError as error:
        wrong = error
    mesh = connect(config)
    if (wrong := agree(setup, wrong, mesh)) is not None:
        return wrong
    assert setup is not None
    summary = Trainer(setup, mesh).run()
    if mesh is not None:
        dist.destroy_process_group()
    return summary


def agree(setup: Setup | None, wrong: InputError | None, mesh: Mesh | None) -> InputError | None:
    """What the first rank with a complaint complains of, or that ranks were told different things, on every rank."""
    if mesh is None:
        return wrong
    verdicts: list[InputError | None] = [None] * mesh.topology.world
    with naming_failures(mesh.dense.group_name, "asked what the others complain of"):
        dist.all_gather_object(verdicts, wrong, group=mesh.dense)
    if any(verdicts):
        return next(verdict for verdict in verdicts if verdict is not None)
    assert setup is not None
    try:
        check_agreement(setup.facts(), mesh.dense, mesh.device)
    except InputError as unlike:
        return unlike
    return None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
