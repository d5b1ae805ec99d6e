"""Interleaved timing: A B A B, so that what disturbs one disturbs the other."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from bench.memory import huge

if TYPE_CHECKING:
    from dmt_kernels.comm import Mesh

Run = Callable[[], Any]

MIN_SAMPLE_S = 1e-3  # shorter calls are repeated until a sample lasts this long
MIN_ROUNDS, MAX_ROUNDS = 5, 201
WARM_UP = 2
EVICT_BYTES = 128 << 20  # several times what a CPU's last cache holds for a few cores


class Clock:
    """Seconds of a call, on all ranks: they start together, and the slowest counts.

    In one process the caches hold something else at the start, as they do after the rest of a training step: the same
    batch again and again would otherwise find its rows there.

    Parameters
    ----------
    mesh : Mesh or None
        The ranks; None for one process.
    cold : bool
        Whether one process starts with cold caches; ranks never do.
    """

    def __init__(self, mesh: Mesh | None = None, *, cold: bool = True) -> None:
        self._cold = cold
        self._mesh = mesh
        self._device = torch.device("cpu") if mesh is None else mesh.device

    def seconds(self, run: Run, calls: int = 1) -> float:
        if self._mesh is None and self._cold:
            evict()
        if self._mesh is not None:
            dist.all_reduce(torch.zeros(1, device=self._device), group=self._mesh.dense)
        self._settle()
        start = time.perf_counter_ns()
        for _ in range(calls):
            run()
        self._settle()
        return (time.perf_counter_ns() - start) * 1e-9 / calls

    def slowest(self, seconds: list[float]) -> list[float]:
        """Element by element, the largest of all ranks."""
        if self._mesh is None:
            return seconds
        times = torch.tensor(seconds, dtype=torch.float64, device=self._device)
        dist.all_reduce(times, dist.ReduceOp.MAX, group=self._mesh.dense)
        return times.tolist()

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def interleave(runs: Mapping[str, Run], budget_s: float, clock: Clock | None = None) -> dict[str, list[float]]:
    """Seconds per call of every contender, one sample each per round, for about `budget_s` in all."""
    clock = clock or Clock()
    calls: dict[str, int] = {}
    round_s = 0.0
    for name, run in runs.items():
        for _ in range(WARM_UP):
            clock.seconds(run)
        began = time.perf_counter()
        once = clock.seconds(run)
        # Every rank decides alike, since all go by the slowest.
        once, around = clock.slowest([once, time.perf_counter() - began])
        calls[name] = max(1, math.ceil(MIN_SAMPLE_S / max(once, 1e-9)))
        round_s += around + once * (calls[name] - 1)
    rounds = min(max(int(budget_s / round_s), MIN_ROUNDS), MAX_ROUNDS)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    with _no_garbage_collection():
        for _ in range(rounds):
            for name, run in runs.items():
                samples[name].append(clock.seconds(run, calls[name]))
    return {name: clock.slowest(times) for name, times in samples.items()}


def evict() -> None:
    """Fill the CPU's caches with something that nobody will ask for."""
    _scratch().add_(1)


@functools.cache
def _scratch() -> torch.Tensor:
    return huge((EVICT_BYTES,), torch.uint8)


def best(run: Callable[[], object], rounds: int = 5) -> float:
    """The least seconds of a few calls: for ceilings, which are about what the machine can do."""
    run()
    clock = Clock()
    return min(clock.seconds(run) for _ in range(rounds))


def percentiles(seconds: list[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile."""
    p20, p50, p80 = np.percentile(seconds, [20, 50, 80])
    return float(p20), float(p50), float(p80)


class _no_garbage_collection:
    def __enter__(self) -> None:
        self._enabled = gc.isenabled()
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            gc.enable()
