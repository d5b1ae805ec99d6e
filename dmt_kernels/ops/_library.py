"""Loads the compiled ops once and knows how to say that they are not there."""

from __future__ import annotations

from pathlib import Path

import torch

from dmt_kernels.spec import NotBuilt

_CPU_LIBRARY = Path(__file__).parents[1] / "_lib" / "libdmt_cpu.so"


def load() -> None:
    """Register ``torch.ops.dmt.*``.

    Raises
    ------
    NotBuilt
        The compiled library is missing.
    """
    if not _CPU_LIBRARY.exists():
        raise NotBuilt("dmt_kernels is not compiled; run `pip install .`, or `make build` in a checkout.")
    torch.ops.load_library(str(_CPU_LIBRARY))


load()
