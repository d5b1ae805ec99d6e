"""What the machine can do, measured in the run that is judged by it: random rows, writes, copies, products."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from bench.memory import huge
from bench.timing import best, evict

SOURCE = Path(__file__).with_name("ceilings.cpp")
BUILD = Path(__file__).parents[1] / "build" / "bench"
WAYS = tuple(itertools.product((12, 24, 48), (1, 2)))  # rows ahead, cache they are prefetched into; the best counts
ROUNDS = 3


class Ceilings:
    """Seconds that the machine needs at least, at the number of threads in use. Rates are remembered for the report."""

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}

    def read_rows(self, memory: Tensor, offsets: Tensor, sizes: Tensor, of: str = "table rows") -> float:
        """Reading `sizes[i]` bytes at byte `offsets[i]` of `memory`, all i, in this order."""
        return self._rows("read", of, memory, offsets, sizes)

    def rewrite_rows(self, memory: Tensor, offsets: Tensor, sizes: Tensor, of: str = "table rows") -> float:
        """Reading them and writing them back; they must not overlap."""
        return self._rows("rewrite", of, memory, offsets, sizes)

    def write(self, size_bytes: int) -> float:
        """Writing a result of this size into pages that are there."""
        return _write_s(size_bytes)

    def copy(self, size_bytes: int) -> float:
        """Reading this many bytes in order and writing as many."""
        return _copy_s(size_bytes)

    def product(self, rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
        """``[rows, inner] @ [inner, columns]`` by the BLAS under torch."""
        seconds = _product_s(rows, inner, columns, dtype)
        name = str(dtype).removeprefix("torch.")
        self.rates[f"GEMM {name} {rows}x{inner}x{columns}, GFLOP/s"] = 2e-9 * rows * inner * columns / seconds
        return seconds

    def survey(self) -> None:
        """Rates of a large write, copy and product, for the report's head."""
        size = 1 << 27
        self.rates["write, GB/s"] = size / self.write(size) * 1e-9
        self.rates["copy, GB/s read + GB/s written"] = 2 * size / self.copy(size) * 1e-9
        # Where a CPU cannot multiply bfloat16, torch does so at one or two GFLOP/s: minutes for the large one.
        small = "AVX512" not in torch.backends.cpu.get_cpu_capability()
        for dtype, width in ((torch.float32, 2048), (torch.bfloat16, 256 if small else 2048)):
            self.product(width, width, width, dtype)

    def _rows(self, what: str, of: str, memory: Tensor, offsets: Tensor, sizes: Tensor) -> float:
        probe = _probe()
        if probe is None or not len(offsets):
            return 0.0
        function = getattr(probe, f"{what}_rows")
        key = (0,) if what == "rewrite" else ()

        def visit(distance: int, cache: int) -> float:
            evict()
            arguments = (memory.data_ptr(), offsets.data_ptr(), sizes.data_ptr(), len(offsets), distance, cache)
            return function(*arguments, torch.get_num_threads(), *key)

        offsets, sizes = offsets.contiguous(), sizes.to(torch.int32).contiguous()
        seconds = min(visit(*way) for way in WAYS * ROUNDS)
        total = float(sizes.sum(dtype=torch.int64))
        name = f"{of} of {total / len(sizes):.0f} bytes, {what} at random, GB/s"
        self.rates[name] = max(self.rates.get(name, 0), total / seconds * 1e-9)
        return seconds


def missing_probe() -> str | None:
    """Why there are no floors, if there are none."""
    return None if _probe() else "no floors: ceilings.cpp needs a C++ compiler (CXX, c++ or g++)"


@functools.cache
def _write_s(size_bytes: int) -> float:
    memory = huge((size_bytes + 64,), torch.uint8)
    seconds = best(lambda: memory.fill_(1))
    probe = _probe()
    if probe is not None:
        for _ in range(ROUNDS):
            evict()
            streamed = probe.write_lines(memory.data_ptr(), -(-size_bytes // 64), torch.get_num_threads())
            seconds = min(seconds, streamed)
    return seconds


@functools.cache
def _copy_s(size_bytes: int) -> float:
    source, target = (huge((max(size_bytes, 1),), torch.uint8) for _ in range(2))
    source.fill_(1)
    return best(lambda: target.copy_(source))


@functools.cache
def _product_s(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    return best(lambda: torch.mm(a, b, out=out), rounds=3)


@functools.cache
def _probe() -> ctypes.CDLL | None:
    """The compiled probe; compiled once per source, compiler and CPU."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    cpu = Path("/proc/cpuinfo").read_text().split("\n\n")[0] if Path("/proc/cpuinfo").exists() else ""
    flags = next((line for line in cpu.splitlines() if line.startswith("flags")), "")
    name = hashlib.sha256("".join([SOURCE.read_text(), compiler, flags]).encode()).hexdigest()[:16]
    library = BUILD / f"ceilings-{name}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        draft = library.with_suffix(f".{os.getpid()}")
        command = [
            compiler,
            "-O3",
            "-march=native",
            "-std=c++17",
            "-shared",
            "-fPIC",
            "-pthread",
            "-o",
            str(draft),
            str(SOURCE),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return None
        draft.replace(library)
    probe = ctypes.CDLL(str(library))
    rows = [ctypes.c_void_p] * 3 + [ctypes.c_int64] + [ctypes.c_int] * 3
    probe.read_rows.argtypes, probe.rewrite_rows.argtypes = rows, [*rows, ctypes.c_uint64]
    probe.read_rows.restype = probe.rewrite_rows.restype = ctypes.c_double
    probe.write_lines.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    probe.write_lines.restype = ctypes.c_double
    return probe
