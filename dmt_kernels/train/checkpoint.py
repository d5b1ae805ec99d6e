"""The model on disk: tables, their optimizer states, tower modules and over-arch, by torch.distributed.checkpoint."""

import contextlib
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from dmt_kernels.comm import Mesh
from dmt_kernels.ops.groups import naming_failures
from dmt_kernels.spec import InputError

EXCHANGE = "exchange."  # whose part of the state a model has under this name
STEP = EXCHANGE + "shards.step"  # which shards start without where what is loaded has none


def save(model: nn.Module, folder: Path, mesh: Mesh | None) -> None:
    """Write the model to ``folder``, replacing what is there once the new one is complete.

    All ranks call it together. Every shard and every tower module has a name of its own, so each rank writes
    what it holds and what several ranks hold is written once. Tower modules are written whole, however they are placed.
    On several hosts ``folder`` must be on a file system they share.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    write(whole_state(model), unfinished, mesh)
    if mesh is None or mesh.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    _wait(mesh)


def load(model: nn.Module, folder: Path, mesh: Mesh | None) -> None:
    """Read in place what :func:`save` wrote for the same towers and members; all ranks call it together.

    Tower modules may be placed otherwise than when it was written.

    Raises
    ------
    InputError
        If the folder does not hold the model.
    """
    if not is_complete(folder):
        raise InputError(f"{folder} holds no finished model")
    state = whole_state(model)
    if STEP not in stored(folder):
        state.pop(STEP, None)
    read(state, folder, mesh)
    load_whole_state(model, state)


def write(state: dict[str, Tensor], folder: Path, mesh: Mesh | None) -> None:
    """Write tensors to a folder, in place of what it held; all ranks call it together.

    Every rank gives what it holds. What several give under one name is the same, and written once.
    """
    if mesh is None or mesh.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    _wait(mesh)
    with _no_warning():
        dcp.save(state, checkpoint_id=folder, process_group=_group(mesh), no_dist=mesh is None)


def read(state: dict[str, Tensor], folder: Path, mesh: Mesh | None) -> None:
    """Read, in place, tensors that :func:`write` wrote under these names; all ranks call it together.

    Raises
    ------
    InputError
        If one is missing or has another shape.
    """
    try:
        with _no_warning():
            dcp.load(state, checkpoint_id=folder, process_group=_group(mesh), no_dist=mesh is None)
    except CheckpointException as error:  # no Exception, so nobody else would catch it
        failure, _ = next(iter(error.failures.values()))
        raise InputError(f"{folder} cannot be read into this model: {str(failure) or repr(failure)}") from error


def is_complete(folder: Path) -> bool:
    """Whether :func:`write` has come to its end: this file is the last one."""
    return (folder / ".metadata").is_file()


def stored(folder: Path) -> dict[str, Any]:
    """What a complete folder holds: of every tensor, by name, its ``size`` and, in ``properties``, its ``dtype``."""
    return dcp.FileSystemReader(folder).read_metadata().state_dict_metadata


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with whole tower modules; collective over towers."""
    exchange: Any = model.exchange
    _, rest = _split(model.state_dict())
    return rest | {EXCHANGE + name: value for name, value in exchange.whole_state().items()}


def load_whole_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Take what :func:`whole_state` has returned."""
    exchange: Any = model.exchange
    of_exchange, rest = _split(state)
    exchange.load_whole_state(of_exchange)
    model.load_state_dict({**model.state_dict(), **rest})


def _split(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The exchange's part, by its own names, and the rest."""
    of_exchange = {name.removeprefix(EXCHANGE): v for name, v in state.items() if name.startswith(EXCHANGE)}
    return of_exchange, {name: value for name, value in state.items() if not name.startswith(EXCHANGE)}


@contextlib.contextmanager
def _no_warning() -> Iterator[None]:
    """One process that saves for itself is what ``no_dist`` asks for, not an oversight to be warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _group(mesh: Mesh | None) -> dist.ProcessGroup | None:
    return None if mesh is None else mesh.dense


def _wait(mesh: Mesh | None) -> None:
    if mesh is not None:
        with naming_failures(mesh.dense.group_name, "waited to write the model"):
            dist.all_reduce(torch.zeros(1, device=mesh.device), group=mesh.dense)
