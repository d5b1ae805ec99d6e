"""Loads the compiled ops once and knows how to say that they are not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from dmt_kernels.spec import NotBuilt

_LIBRARIES = Path(__file__).parents[1] / "_lib"
_CPU_LIBRARY = _LIBRARIES / "libdmt_cpu.so"
_CUDA_LIBRARY = _LIBRARIES / "libdmt_cuda.so"


def load() -> str:
    """Register ``torch.ops.dmt.*``, and return what runs them on CUDA: "compiled" kernels, "triton" or "none".

    Raises
    ------
    NotBuilt
        The compiled library is missing.
    """
    if not _CPU_LIBRARY.exists():
        raise NotBuilt(
            "dmt_kernels is not compiled; run `make build` in a checkout, or leave it and take what `pip install` made."
        )
    torch.ops.load_library(str(_CPU_LIBRARY))
    if torch.version.cuda is None:
        return "none"
    if _CUDA_LIBRARY.exists():
        torch.ops.load_library(str(_CUDA_LIBRARY))
        return "compiled"
    return "triton" if importlib.util.find_spec("triton") else "none"


cuda_kernels = load()
