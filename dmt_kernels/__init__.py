"""Disaggregated multi-tower recommendation models: kernels, topology-aware exchange and training.

Importing the package registers ``torch.ops.dmt.*``. The functions of :mod:`dmt_kernels.ops` are here, too
(``dmt_kernels.embedding_bag``, ...); the layers above them (``dmt_kernels.embedding``, ...) are imported on first use.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

_PACKAGES = ("comm", "embedding", "info", "models", "ops", "planner", "spec", "towers", "train")

__all__ = ["__version__", *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("dmt_kernels")
        except PackageNotFoundError:
            return "0+unknown"  # a checkout that was put on the path without being installed
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if not name.startswith("_") and name in (functions := importlib.import_module(f"{__name__}.ops")).__all__:
        return getattr(functions, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *getattr(globals().get("ops"), "__all__", ())})


# A checkout that was not built can still be asked for `python -m dmt_kernels info`; using an op says what to do.
if (Path(__file__).parent / "_lib" / "libdmt_cpu.so").exists() and importlib.util.find_spec("torch"):
    from dmt_kernels import ops  # noqa: F401
