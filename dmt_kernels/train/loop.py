"""A training run on one rank, from options to summary."""

import contextlib
import gc
import itertools
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from dmt_kernels.comm import Mesh, check_agreement, traffic
from dmt_kernels.ops.groups import naming_failures
from dmt_kernels.spec import Batch, InputError
from dmt_kernels.train import checkpoint, resume
from dmt_kernels.train.assemble import Setup, build_model, connect, make_loader, save_layout, set_up_training
from dmt_kernels.train.averaging import AveragedWeights
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.metrics import Scores
from dmt_kernels.train.output import RunFolder
from dmt_kernels.train.predict import evaluate
from dmt_kernels.train.progress import TrainProgress
from dmt_kernels.train.resume import Progress
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
    since : Progress or None
        Where the run in the folder goes on; None: a new run.
    """

    def __init__(self, setup: Setup, mesh: Mesh | None, since: Progress | None = None) -> None:
        self.setup, self.config, self.mesh, self.since = setup, setup.config, mesh, since
        self.leads = mesh is None or mesh.rank == 0
        self.folder = None if self.config.out is None else RunFolder(self.config.out)
        self.model = build_model(setup if since is None else setup.placed(since.placement), mesh)
        self.exchange: Any = self.model.exchange
        self.train_step = TrainStep(self.model, mesh, **self.config.dense_training())
        device = next(self.model.parameters()).device
        self.loaders = {
            split: make_loader(setup, split, mesh, device, shuffle=split == "train")
            for split in ("train", "valid", "test")
        }
        self.timer = StepTimer(device)
        self.steps = setup.steps
        decay = self.config.average_weights
        self.begun_for = self.steps if since is None else since.steps
        self.average = None if decay is None else AveragedWeights(self.model, decay, self.begun_for)
        self.sent: Counter[tuple[str, str]] = Counter()
        self.step, self.epoch, self.epoch_step = 0, 0, 0
        self.losses: list[torch.Tensor] = []  # that no line of metrics has yet
        self.best: Scores | None = None
        self.best_epoch = 0
        if since is not None:
            self._go_on(since)

    def run(self) -> dict[str, Any]:
        """Train, evaluate and return the summary."""
        if self.folder is not None and self.leads:
            if self.since is None:
                self.folder.clear()
            else:
                self.folder.cut_metrics(self.step)
            self.config.save(self.folder.config)
            save_layout(self.setup, self.folder.layout)
        gc.freeze()  # or the collector walks through all of torch now and then, some 5 % of a step
        with TrainProgress(self.title, self.steps, show=self.leads) as self.progress:
            if self.since is not None:
                self.progress.step(self.step, "goes on")
            while self.step < self.steps or self.epoch_step:
                with contextlib.nullcontext() if self.average is None else self.average.set_aside():
                    self._train_epoch()
                self.epoch, self.epoch_step, self.losses = self.epoch + 1, 0, []
                valid = evaluate(self.model, self.loaders["valid"], self.mesh, amp=self.config.amp)
                scores = {"valid_auc": valid.auc, "valid_logloss": valid.logloss}
                self._log({"epoch": self.epoch, "step": self.step, **scores})
                self.progress.step(self.step, f"epoch {self.epoch} valid AUC {_number(valid.auc)}")
                if self.config.early_stop is None or valid.beats(self.best):
                    self.best, self.best_epoch = valid, self.epoch
                    if self.config.early_stop is not None:
                        self._keep()
                elif self.epoch - self.best_epoch >= self.config.early_stop:
                    break
        if self.config.early_stop is None:
            self._save()
        elif self.best_epoch != self.epoch:
            self._return_to_kept()
        summary = self._summary()
        if self.folder is not None and self.leads:
            self.folder.write_summary(summary)
        return summary

    @property
    def title(self) -> str:
        """What the run is, in a few words."""
        module = "" if self.config.tower_module == "none" else f" + {self.config.tower_module} towers"
        return f"{self.config.model} {self.config.exchange}{module}"

    def _go_on(self, since: Progress) -> None:
        """Take the state that the folder has of the run."""
        assert self.folder is not None
        with contextlib.nullcontext() if self.average is None else self.average.set_aside():
            resume.load(self.folder, self.train_step, self.average, since.step, self.mesh)
            if self.average is not None:
                self.average.go_on(since.step)  # from here on there is an average to be put outside
        self.step, self.epoch, self.epoch_step = since.step, since.epoch, since.epoch_step
        device = next(self.model.parameters()).device
        self.losses = list(torch.tensor(since.losses, dtype=self.config.torch_dtype(), device=device).unbind())
        self.exchange.batches = since.batches
        self.best, self.best_epoch = since.best, since.best_epoch

    def _train_epoch(self) -> None:
        samples, began = 0, time.perf_counter()
        traffic.reset()
        self.timer.restart()
        for batch, next_batch in self._batches():
            self.losses.append(self.train_step(batch, next_batch))
            if self.average is not None:
                self.average.step()
            samples += batch.global_samples
            self.timer.step(batch.global_samples)
            self.step, self.epoch_step = self.step + 1, self.epoch_step + 1
            self.progress.step(self.step)
            if self.step % self.config.log_every == 0 or self.step == self.steps:
                loss = torch.stack(self.losses).mean().item()  # waits for the device, hence not every step
                self.train_step.missing_ids.wait()
                rate = samples / (time.perf_counter() - began)
                self._log({"epoch": self.epoch + 1, "step": self.step, "loss": loss, "samples_per_s": rate})
                self.progress.step(self.step, f"loss {loss:.4f}")
                self.losses, samples, began = [], 0, time.perf_counter()
            if self.config.save_every is not None and self.step % self.config.save_every == 0:
                paused = time.perf_counter()
                self._save_state()
                self.timer.restart()
                began += time.perf_counter() - paused
        self.train_step.missing_ids.wait()  # or an epoch would be scored and kept that has left out batches
        self.sent.update(traffic.sent_bytes())

    def _batches(self) -> Iterator[tuple[Batch, Batch | None]]:
        """What is left of the epoch's batches, or of the run's, each with the one after it."""
        loader = self.loaders["train"]
        loader.set_epoch(self.epoch, self.epoch_step)
        ahead = itertools.islice(loader, self.steps - self.step)
        batch = next(ahead, None)
        while batch is not None:
            next_batch = next(ahead, None)
            yield batch, next_batch
            batch = next_batch

    def _save_state(self) -> None:
        assert self.folder is not None
        self.train_step.missing_ids.wait()  # or what is left out so far would stay so
        self.sent.update(traffic.sent_bytes())  # of training: what is sent to save does not count
        progress = Progress(
            step=self.step,
            steps=self.begun_for,
            rows=self.setup.rows,
            epoch=self.epoch,
            epoch_step=self.epoch_step,
            losses=tuple(torch.stack(self.losses).tolist() if self.losses else ()),
            batches=self.exchange.batches,
            placement=self.exchange.placement,
            best=self.best,
            best_epoch=self.best_epoch,
        )
        resume.save(self.folder, self.train_step, self.average, progress, self.mesh)
        traffic.reset()

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

    def _summary(self) -> dict[str, Any]:
        assert self.best is not None
        valid = test = self.best
        if self.loaders["test"].samples:
            test = evaluate(self.model, self.loaders["test"], self.mesh, amp=self.config.amp)
        own_steps = self.step - (0 if self.since is None else self.since.step)  # of this process
        step_ms, samples_per_s = self.timer.figures() if own_steps else (None, None)
        sent: dict[str, float | None] = dict(traffic_per_step(self.sent, own_steps, self.mesh))
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
            **(sent if own_steps else dict.fromkeys(sent)),
            "compression": self.exchange.realised_compression,
            "widest_tower": self.exchange.widest_tower,
            "world_size": 1 if self.mesh is None else topology.world,
            "towers": topology.towers,
            "members": topology.members,
            "dense_params": count_parameters(self.model, self.mesh),
            "embedding_params": embedding_parameters(self.setup.plan),
            "epochs": self.epoch,
            "best_epoch": self.best_epoch,
            "steps": self.step,
            "seed": config.seed,
            "model": config.model,
            "exchange": config.exchange,
            "tower_module": config.tower_module,
            "placement": self.exchange.placement,
            "data": self.setup.dataset.name,
        }


def train_rank(config: TrainConfig) -> dict[str, Any] | InputError:
    """Do one rank's part of a run.

    Returns
    -------
    dict or InputError
        The summary; or what some rank found wrong before anything was written, on all ranks alike.
    """
    setup, since, wrong = None, None, None
    try:
        setup, since = prepare(config)
    except InputError as error:
        wrong = error
    mesh = connect(config)
    if (wrong := agree(setup, wrong, mesh, ("step to go on from", None if since is None else since.step))) is not None:
        return wrong
    assert setup is not None
    with contextlib.ExitStack() as held:
        if config.out is not None and (wrong := take_folder(RunFolder(config.out), mesh, held)) is not None:
            return wrong
        summary = Trainer(setup, mesh, since).run()
    if mesh is not None:
        dist.destroy_process_group()
    return summary


def prepare(config: TrainConfig) -> tuple[Setup, Progress | None]:
    """Check everything, the folder too, and find where a run goes on; nothing is started or written.

    Raises
    ------
    InputError
        Naming what is wrong.
    """
    setup = set_up_training(config)
    if config.out is None:
        return setup, None
    folder = RunFolder(config.out)
    folder.check_writable(config.overwrite or config.resume)
    return setup, resume.find(folder, setup) if config.resume else None


def agree(
    setup: Setup | None, wrong: InputError | None, mesh: Mesh | None, *more: tuple[str, object]
) -> InputError | None:
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
        check_agreement([*setup.facts(), *more], mesh.dense, mesh.device)
    except InputError as unlike:
        return unlike
    return None


def take_folder(folder: RunFolder, mesh: Mesh | None, held: contextlib.ExitStack) -> InputError | None:
    """Keep other runs from the folder while `held` is open, or say what is wrong, on all ranks alike.

    That may be another run, or a folder that not all ranks see: each writes its part of the model.
    """
    wrong = None
    if mesh is None or mesh.rank == 0:
        try:
            held.enter_context(folder.take())
        except InputError as error:
            wrong = error
    if mesh is None:
        return wrong
    told: list[Any] = [wrong, uuid.uuid4().hex]
    with naming_failures(mesh.dense.group_name, "looked for what rank 0 has written"):
        dist.broadcast_object_list(told, src=0, group=mesh.dense)
        wrong, name = told
        if wrong is not None:
            return wrong
        mark = folder.path / f".{name}"
        if mesh.rank == 0:
            mark.touch()
        dist.all_reduce(torch.zeros(1, device=mesh.device), group=mesh.dense)  # it is there
        seen = [False] * mesh.topology.world
        dist.all_gather_object(seen, mark.exists(), group=mesh.dense)
    if mesh.rank == 0:
        mark.unlink()
    if all(seen):
        return None
    return InputError(f"--out {folder.path}: rank {seen.index(False)} does not see what rank 0 writes there")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
