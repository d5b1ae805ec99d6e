"""Memory that ours and the peers share, or get alike: anonymous mappings that ask for huge pages."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PATTERN = 1_000_003  # prime, so that no two rows of a table repeat


def huge(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros in 2 MiB pages, where the system gives them (``madvise`` before the first touch)."""
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def random_values(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """``[count]`` values in [-1, 1): a random stretch over and over, since drawing gigabytes takes long."""
    pattern = torch.rand(min(count, _PATTERN), generator=torch.Generator().manual_seed(seed)).mul_(2).sub_(1).to(dtype)
    values = huge((count,), dtype)
    values[: len(pattern)] = pattern
    done = len(pattern)
    while done < count:  # a few large copies, which all threads share
        more = min(done, count - done)
        values[done : done + more] = values[:more]
        done += more
    return values


class OneSlot:
    """Keeps the last thing made. Tables take gigabytes: the old ones go before the new ones come."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._value: Any = None

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key != self._key:
            self.clear()
            self._value = make()
            self._key = key
        return self._value

    def clear(self) -> None:
        self._key = self._value = None


def huge_page_mb() -> float | None:
    """AnonHugePages of this process, None where the system does not say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("AnonHugePages")), None)
