"""What an interrupted run goes on from: all that training depends on, written every so many steps.

On as many ranks it trains to the bits of a run that nothing has interrupted, unless it chooses its chunks by a trial.
"""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmt_kernels.comm import Mesh
from dmt_kernels.spec import InputError
from dmt_kernels.train import checkpoint
from dmt_kernels.train.assemble import Setup, layout_of
from dmt_kernels.train.averaging import AveragedWeights
from dmt_kernels.train.config import TrainConfig, flag
from dmt_kernels.train.metrics import Scores
from dmt_kernels.train.output import RunFolder
from dmt_kernels.train.step import TrainStep, slice_parameters

PROGRESS = "progress"  # by this name, among a state's tensors: bytes of JSON
# What may be another when a run goes on: where things lie (its layout is compared), and how it runs.
PLACES = ("data", "tables", "partition", "out", "overwrite", "resume", "device", "threads")
COURSE = ("epochs", "steps", "timeout", "log_every", "save_every")


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Parameters
    ----------
    step : int
        Steps trained.
    steps : int
        Of the whole run, as it was begun: how often the weights' average is taken depends on it.
    rows : tuple of int
        Of the training, validation and test splits.
    epoch, epoch_step : int
        Epochs trained and scored, and steps of the one after.
    losses : tuple of float
        Of the steps that ``metrics.jsonl`` has no line of yet.
    batches : int
        That the exchange has started (:class:`~dmt_kernels.embedding.EmbeddingExchange`).
    placement : str
        Of tower modules.
    best : Scores or None
        Of the validation split, after ``best_epoch`` epochs.
    best_epoch : int
        As many.
    """

    step: int
    steps: int
    rows: tuple[int, ...]
    epoch: int
    epoch_step: int
    losses: tuple[float, ...]
    batches: int
    placement: str
    best: Scores | None
    best_epoch: int

    def to_tensor(self) -> Tensor:
        """Bytes of JSON, uint8."""
        return torch.frombuffer(bytearray(json.dumps(dataclasses.asdict(self)), "utf-8"), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "Progress":
        """Undo :meth:`to_tensor`."""
        given = json.loads(bytes(tensor.tolist()))
        best = None if given["best"] is None else Scores(**given["best"])
        return cls(**(given | {"losses": tuple(given["losses"]), "rows": tuple(given["rows"]), "best": best}))


def find(folder: RunFolder, setup: Setup) -> Progress | None:
    """Say where the run in a folder can go on; None where it has left nothing to go on from, and begins anew.

    Raises
    ------
    InputError
        If the run was told something else that it depends on, or has trained longer than it is told to.
    """
    if not folder.config.exists():
        return None
    before = TrainConfig.load(folder.config)
    for option in dataclasses.fields(TrainConfig):
        was, now = (getattr(config, option.name) for config in (before, setup.config))
        if was != now and option.name not in PLACES + COURSE:
            raise InputError(f"--resume: the run in {folder.path} has {flag(option.name)} {was}, not {now}")
    if folder.layout.exists() and json.loads(folder.layout.read_text()) != json.loads(json.dumps(layout_of(setup))):
        raise InputError(f"--resume: the run in {folder.path} has other tables or towers ({folder.layout.name})")
    latest = _latest(folder)
    if latest is None:
        return None
    progress = torch.empty(checkpoint.stored(latest)[PROGRESS].size, dtype=torch.uint8)
    checkpoint.read({PROGRESS: progress}, latest, None)
    since = Progress.from_tensor(progress)
    if since.step > setup.steps:
        raise InputError(f"--resume: the run in {folder.path} has trained {since.step} steps, not {setup.steps}")
    if since.rows != setup.rows:
        raise InputError(f"--resume: the run in {folder.path} has splits of {since.rows} rows, not {setup.rows}")
    return since


def save(
    folder: RunFolder, train_step: TrainStep, average: AveragedWeights | None, progress: Progress, mesh: Mesh | None
) -> None:
    """Write a state, and then remove the one before; all ranks call it together."""
    names = _names(train_step.model, mesh)
    state = checkpoint.whole_state(train_step.model) | {PROGRESS: progress.to_tensor()} | _averages(average, names)
    for name, parameter in names.items():
        values = train_step.optimizer.state.get(parameter, {})
        state |= {f"optimizer.{name}.{key}": value for key, value in values.items()}
    new = _state(folder, progress.step)
    checkpoint.write(state, new, mesh)
    if mesh is None or mesh.rank == 0:
        for other in folder.states.iterdir():
            if other != new:
                shutil.rmtree(other, ignore_errors=True)


def load(
    folder: RunFolder, train_step: TrainStep, average: AveragedWeights | None, step: int, mesh: Mesh | None
) -> None:
    """Read in place the state of a step that :func:`save` has written; all ranks call it together.

    Raises
    ------
    InputError
        If it is another model's.
    """
    saved = _state(folder, step)
    model, optimizer, names = train_step.model, train_step.optimizer, _names(train_step.model, mesh)
    whole, stored = checkpoint.whole_state(model), checkpoint.stored(saved)
    # Not torch's `get_optimizer_state_dict`: by its names the slices of a tower module would be one parameter.
    values: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for key, tensor in stored.items():
        name, _, of_optimizer = key.removeprefix("optimizer.").rpartition(".")
        if key.startswith("optimizer.") and name in values:
            values[name][of_optimizer] = torch.empty(tensor.size, dtype=tensor.properties.dtype)
    by_key = {f"optimizer.{name}.{key}": value for name, of in values.items() for key, value in of.items()}
    checkpoint.read(whole | _averages(average, names) | by_key, saved, mesh)
    checkpoint.load_whole_state(model, whole)
    groups = optimizer.state_dict()["param_groups"]
    numbers = {
        parameter: number
        for group, numbered in zip(optimizer.param_groups, groups, strict=True)
        for parameter, number in zip(group["params"], numbered["params"], strict=True)
    }
    state = {numbers[parameter]: values[name] for name, parameter in names.items() if values[name]}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _state(folder: RunFolder, step: int) -> Path:
    return folder.states / f"step-{step}"


def _latest(folder: RunFolder) -> Path | None:
    """The latest complete state."""
    steps = [
        int(name) for path in folder.states.glob("step-*") if (name := path.name.removeprefix("step-")).isdecimal()
    ]
    complete = [step for step in steps if checkpoint.is_complete(_state(folder, step))]
    return _state(folder, max(complete)) if complete else None


def _names(model: nn.Module, mesh: Mesh | None) -> dict[str, nn.Parameter]:
    """Parameters by names that no two of all ranks share: members hold slices of one parameter by its name."""
    slices = slice_parameters(model)
    return {
        f"{name}.{mesh.member_index}" if mesh is not None and name in slices else name: parameter
        for name, parameter in model.named_parameters()
    }


def _averages(average: AveragedWeights | None, names: dict[str, nn.Parameter]) -> dict[str, Any]:
    if average is None:
        return {}
    return {f"average.{name}": value for name, value in average.by_name(list(names)).items()}
