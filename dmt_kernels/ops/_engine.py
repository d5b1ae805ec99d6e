"""Chooses, once, what the stages of an exchange run on: the compiled engine, or ``torch.distributed`` from Python."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dmt_kernels.ops.reference import stage as composition


class Stage(Protocol):
    """A stage of which blocks are expected. It keeps everything alive that the backend reads and writes."""

    def send(self, blocks: Sequence[Tensor], format: int | None, seed: int | None, step: int) -> None:
        """Send a block to every rank; arguments as in `dmt_kernels.ops.stage_send`."""
        ...

    @property
    def sent_bytes(self) -> list[int]:
        """To every rank, once sent."""
        ...

    def wait(self) -> None:
        """Wait for the blocks and put them where they belong.

        A RuntimeError may have an attribute ``peer``: the rank of the group whose message failed.
        """
        ...


class Engine(Protocol):
    """Begins stages; a format is the code of a WireFormat, None carries the dtype's own bytes."""

    def expect(self, out: Sequence[Tensor], group: str, format: int | None) -> Stage:
        """Begin a stage; arguments as in `dmt_kernels.ops.stage_expect`."""
        ...

    def share_memory(self, group: str, is_willing: bool) -> list[int]:
        """Agree with the ranks of a group which of them share memory with this one from its next stage on: these."""
        ...

    def copied_bytes(self) -> int:
        """Bytes copied so far to pack and unpack."""
        ...


def choose_engine() -> tuple[Engine, str]:
    """Return the engine and, in words, which it is and why."""
    compiled, reason = compiled_engine()
    if compiled is None:
        return composition, f"composition of torch.distributed: {reason}"
    return compiled, f"compiled, {reason}"


def compiled_engine() -> tuple[Any, str]:
    """Return the compiled engine, or None, and the reason.

    It is asked of the build which torch it was built with before it is loaded: under another one it might crash.
    """
    build = importlib.import_module("dmt_kernels._C").build_info()
    if (state := build["communication_engine"]) != "on":
        return None, f"the engine was not built ({state})"
    built, here = (_minor(version) for version in (build["torch_version"], str(torch.__version__)))
    if built != here:
        return None, f"the engine was built with torch {built}, this is {here}"
    try:
        return importlib.import_module("dmt_kernels._comm"), f"for torch {built}"
    except ImportError as error:
        return None, f"the engine cannot be loaded ({' '.join(str(error).split())})"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
