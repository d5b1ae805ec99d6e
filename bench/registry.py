"""Named cases, what building one gives, and which ones a run takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.timing import Run

if TYPE_CHECKING:
    from bench.ceilings import Ceilings
    from dmt_kernels.comm import Mesh

SUITES = {
    "ops": (
        "bench.ops.embedding_bag",
        "bench.ops.embedding_bag_blocks",
        "bench.ops.embedding_update",
        "bench.ops.tower_pool",
        "bench.ops.wire_codec",
        "bench.ops.id_codec",
        "bench.ops.dot_interaction",
        "bench.ops.overhead",
    ),
    "comm": (
        "bench.comm.links",
        "bench.comm.stage",
        "bench.comm.two_stage",
        "bench.comm.id_exchange",
        "bench.comm.placement",
    ),
    "train": ("bench.train_step",),
}
QUICK, DEFAULT, FULL = range(3)  # how much one must ask for until a case runs


@dataclass(frozen=True)
class Setting:
    """Where a case is built: with which peers, and, if it is distributed, on which ranks."""

    peers: tuple[str, ...] = ()
    mesh: Mesh | None = None


@dataclass
class Work:
    """A case that is built and can run.

    `check` raises :class:`~bench.agreement.Disagreement` unless ours and the peers' results are right. `floor` gives
    the least seconds that the machine needs for each part of the work. `work_bytes` are what the work has to move.
    """

    ours: Run
    peers: Mapping[str, Run]
    check: Callable[[], None]
    floor: Callable[[Ceilings], dict[str, float]] | None = None
    work_bytes: float = 0
    work_flops: float = 0
    cold: bool = True  # whether the caches hold something else before each sample

    def contenders(self) -> dict[str, Run]:
        return {"ours": self.ours, **self.peers}


@dataclass(frozen=True)
class Case:
    name: str  # words separated by slashes, the op first
    build: Callable[[Setting], Work] = field(repr=False, compare=False)
    effort: int = FULL
    shares: Hashable = None  # what it has in common with other cases: they run one after the other


class Registry:
    def __init__(self) -> None:
        self._cases: dict[str, Case] = {}

    def add(self, name: str, build: Callable[[Setting], Work], effort: int = FULL, shares: Hashable = None) -> None:
        if name in self._cases:
            raise ValueError(f"two cases are named {name!r}")
        self._cases[name] = Case(name, build, effort, shares)

    def __iter__(self) -> Iterator[Case]:
        return iter(self._cases.values())

    def select(self, filters: Sequence[str] = (), effort: int = DEFAULT) -> list[Case]:
        """Cases of this effort; or, given filters, all cases whose name holds every one of them."""
        if filters:
            return [case for case in self if all(word in case.name for word in filters)]
        return [case for case in self if case.effort <= effort]


def in_running_order(cases: Sequence[Case]) -> list[Case]:
    """Those that share tables side by side; otherwise as they come."""
    first = {case.shares: number for number, case in reversed(list(enumerate(cases)))}
    return sorted(cases, key=lambda case: first[case.shares])


def load(suite: str) -> Registry:
    """The cases of a suite: every module of it has a ``register(registry)``."""
    registry = Registry()
    for module in SUITES[suite]:
        importlib.import_module(module).register(registry)
    return registry
