"""The peers: one module each, with the same three functions, each giving a call or None where the peer has none."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from torch import __version__ as TORCH_VERSION  # `torch` is a module of this package as soon as it is imported

from bench.registry import Run

NAMES = ("fbgemm", "torch")


@functools.cache
def obstacle(name: str) -> str | None:
    """Why a peer cannot run here, with what to do about it; None if it can."""
    try:
        importlib.import_module(f"bench.baselines.{name}")
        return None
    except (ImportError, OSError) as error:
        # FBGEMM 1.X belongs to torch 2.(X + 5).
        wheel = f"fbgemm-gpu-cpu==1.{int(TORCH_VERSION.split('.')[1]) - 5}.0"
        how = f"pip install --no-deps {wheel} && pip install 'dmt_kernels[bench]'"
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
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
