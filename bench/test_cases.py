"""The cases of the ops suite under pytest-benchmark: ``pytest bench --benchmark-only``.

One test per case and contender, named alike at every revision, so that ``--benchmark-save`` and ``--benchmark-compare``
tell two revisions apart. Contenders are not interleaved here: for a ratio, ``python -m bench`` is the better judge.
"""

from typing import Any

import pytest

from bench import baselines, registry
from bench.memory import OneSlot
from bench.registry import Case, Setting, Work
from bench.timing import evict

PEERS = tuple(name for name in baselines.of_suite("ops") if baselines.obstacle(name) is None)
_built = OneSlot()
ROUNDS = 15


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    selected = registry.load("ops").select(metafunc.config.getoption("--bench-filter").split())
    cases = registry.in_running_order(selected)
    pairs = [(case, who) for case in cases for who in ("ours", *PEERS)]
    metafunc.parametrize(("case", "who"), pairs, ids=[f"{case.name}-{who}" for case, who in pairs])


def test_case(case: Case, who: str, benchmark: Any) -> None:
    work = _built.get(case.name, lambda: _checked(case))
    run = work.contenders().get(who)
    if run is None:
        pytest.skip(f"{who} has nothing for this case")
    benchmark.group = case.name
    benchmark.pedantic(run, setup=evict if work.cold else None, rounds=ROUNDS, warmup_rounds=2)


def _checked(case: Case) -> Work:
    work = case.build(Setting(peers=PEERS))
    work.check()
    return work
