"""The peers: one module each, whose functions give a call, or None where the peer has nothing for the work."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

from torch import __version__ as TORCH_VERSION  # `torch` is a module of this package as soon as it is imported

from bench.timing import Run
from dmt_kernels.spec import TableOptimizer


@dataclass(frozen=True)
class Peer:
    package: str  # as it is imported
    suites: tuple[str, ...]
    wheels: tuple[str, ...] = ()  # what brings it, all of one version


@dataclass(frozen=True)
class Training:
    """How a peer trains: the tables in the backward pass, the rest with Adam."""

    tables: TableOptimizer
    dense_lr: float
    seed: int  # of the tables' first values


PEERS = {
    "fbgemm": Peer("fbgemm_gpu", ("ops",), ("fbgemm-gpu-cpu",)),
    "torchrec": Peer("torchrec", ("comm", "train"), ("fbgemm-gpu-cpu", "torchrec")),
    "torch": Peer("torch", ("ops", "comm")),
}
NAMES = tuple(PEERS)


def of_suite(suite: str, names: Iterable[str] = NAMES) -> tuple[str, ...]:
    """Those of these peers that have something for a suite."""
    return tuple(name for name in names if suite in PEERS[name].suites)


@functools.cache
def obstacle(name: str) -> str | None:
    """Why a peer cannot run here, with what to do about it; None if it can."""
    try:
        importlib.import_module(f"bench.baselines.{name}")
        return None
    except (ImportError, OSError, AttributeError, RuntimeError) as error:  # the latter two: of another torch
        # FBGEMM and TorchRec 1.X belong to torch 2.(X + 5).
        version = f"1.{int(TORCH_VERSION.split('.')[1]) - 5}.0"
        wheels = " ".join(f"{wheel}=={version}" for wheel in PEERS[name].wheels)
        how = f"pip install --no-deps {wheels} && pip install 'dmt_kernels[bench]'"
        absent = importlib.util.find_spec(PEERS[name].package) is None
        why = "is not installed" if absent else f"cannot be loaded ({' '.join(str(error).split())})"
        return f"{name} {why}, its columns are empty; for torch {TORCH_VERSION}: {how}"


def contenders(function: str, names: tuple[str, ...], *args: object, **options: object) -> dict[str, Run]:
    """What the peers that are here have for this, by name."""
    modules: dict[str, ModuleType] = {
        name: importlib.import_module(f"bench.baselines.{name}") for name in names if obstacle(name) is None
    }
    runs = {
        name: getattr(module, function, lambda *_, **__: None)(*args, **options) for name, module in modules.items()
    }
    return {name: run for name, run in runs.items() if run is not None}
