"""Disaggregated multi-tower recommendation models: kernels, topology-aware exchange and training.

Importing the package registers ``torch.ops.dmt.*``. The functional API (``dmt_kernels.embedding_bag``, ...) and the
layers above it (``dmt_kernels.embedding``, ``dmt_kernels.train``, ...) are imported on first use.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

_OPS = (
    "bytes_per_id",
    "check_ids",
    "dot_interaction",
    "embedding_bag",
    "embedding_bag_",
    "embedding_bag_blocks_",
    "embedding_row_squares",
    "embedding_update_",
    "id_decode",
    "id_encode",
    "id_exchange",
    "id_payload_bytes",
    "peer_all_to_all",
    "peer_all_to_all_start",
    "peer_all_to_all_wait",
    "raise_missing_ids",
    "select_features",
    "stage_expect",
    "stage_send",
    "stage_share_memory",
    "stage_start",
    "stage_wait",
    "tower_all_to_all",
    "tower_all_to_all_start",
    "tower_all_to_all_wait",
    "tower_pool",
    "tower_pool_pooled_backward",
    "tower_pool_weight_backward",
    "two_stage_all_to_all",
    "wire_decode",
    "wire_encode",
)  # the functions of `dmt_kernels.ops`, by name so that to ask for one needs no torch
_PACKAGES = ("comm", "embedding", "info", "models", "ops", "planner", "spec", "towers", "train")

__all__ = ["__version__", *_OPS, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("dmt_kernels")
        except PackageNotFoundError:
            return "0+unknown"  # a checkout that was put on the path without being installed
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _OPS:
        return getattr(importlib.import_module(f"{__name__}.ops"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# A checkout that was not built can still be asked for `python -m dmt_kernels info`; using an op says what to do.
if (Path(__file__).parent / "_lib" / "libdmt_cpu.so").exists() and importlib.util.find_spec("torch"):
    from dmt_kernels import ops  # noqa: F401
