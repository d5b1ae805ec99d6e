"""A device, its clock, its ceilings, and tables and ids on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """Features, rows of a table, columns, samples; those of the tower; and how long a measurement may take."""

    features: int = 26
    rows: int = 1_000_000
    dim: int = 128
    samples: int = 16_384
    lengths: tuple[int, ...] = (1, 10, 50)
    tower_features: int = 8
    tower_samples: int = 65_536
    out_width: int = 256
    codec_rows: int = 1_000_000
    probe_bytes: int = 1 << 30
    probe_width: int = 8192
    seconds: float = 0.4


TINY = Sizes(3, 100, 16, 32, (1, 2, 3), 2, 64, 24, 50, 1 << 16, 64, 0.01)
MOST_PROBED = 1 << 22  # rows of a gather


class Device:
    """One device; rates in units per second."""

    def __init__(self, name: str, sizes: Sizes) -> None:
        self.device = torch.device(name)
        self.sizes = sizes
        self.generator = torch.Generator(self.device).manual_seed(1)
        source = torch.ones(sizes.probe_bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.copy_rate = 2 * sizes.probe_bytes / self.seconds(lambda: target.copy_(source))
        square = torch.ones(sizes.probe_width, sizes.probe_width, dtype=torch.bfloat16, device=self.device)
        self.product_rate = 2 * sizes.probe_width**3 / self.seconds(lambda: square @ square)
        uniform, _ = self.bags(1, MOST_PROBED if name == "cuda" else sizes.rows, 1)
        self.gather_rate = self.rate_of_rows(self.tables(1, torch.float32)[0], uniform)

    def rate_of_rows(self, table: Tensor, ids: Tensor) -> float:
        """Bytes per second of the fastest gather of these rows at hand, read and written."""
        ids = ids[:MOST_PROBED]
        rows = torch.empty(len(ids), table.shape[1], dtype=table.dtype, device=self.device)
        gathers: list[Run] = [lambda: torch.index_select(table, 0, ids, out=rows), lambda: table[ids]]
        if self.device.type == "cuda" and find_spec("triton") is not None:
            from bench.gpu.gather import gather

            gathers.append(lambda: gather(table, ids, rows))
        return 2 * rows.nbytes / min(map(self.seconds, gathers))

    def seconds(self, run: Run) -> float:
        """The median of some calls; what lies in the caches before is what the call before left there."""
        for _ in range(2):
            run()
        first = self._once(run)
        rounds = max(5, min(25, int(self.sizes.seconds / max(first, 1e-6))))
        return statistics.median([first, *(self._once(run) for _ in range(rounds))])

    def _once(self, run: Run) -> float:
        if self.device.type == "cpu":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(2_000_000)  # the host is ahead when the call begins: it is the device that is timed
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def bags(self, features: int, samples: int, length: int, skewed: bool = False) -> tuple[Tensor, Tensor]:
        """Ids and offsets of bags of `length` ids each; skewed: a few rows get most of them (Zipf, exponent 1.05)."""
        count, rows = features * samples * length, self.sizes.rows
        offsets = torch.arange(0, count + 1, length, device=self.device)
        if not skewed:
            return torch.randint(rows, (count,), device=self.device, generator=self.generator), offsets
        uniform = torch.rand(count, device=self.device, generator=self.generator, dtype=torch.float64)
        top = rows ** (1 - 1.05)
        return ((1 - uniform * (1 - top)) ** (1 / (1 - 1.05)) - 1).long().clamp(0, rows - 1), offsets

    def tables(self, count: int, dtype: torch.dtype) -> list[Tensor]:
        shape = (self.sizes.rows, self.sizes.dim)
        return [
            torch.empty(shape, device=self.device, dtype=dtype).uniform_(-1, 1, generator=self.generator)
            for _ in range(count)
        ]

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, generator=self.generator)
