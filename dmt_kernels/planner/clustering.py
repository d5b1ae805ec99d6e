"""Balanced clustering: k-means whose assignment step keeps every load within its limits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dmt_kernels.planner.annealing import anneal
from dmt_kernels.planner.assignment import Assignment, Relaxation, assign, draft, relax
from dmt_kernels.planner.centres import costs, means, start
from dmt_kernels.planner.excess import smallest_excess
from dmt_kernels.planner.loads import Load
from dmt_kernels.planner.program import DEFAULT_SECONDS, GAP
from dmt_kernels.spec import InputError

_STARTS = 8
_FEW = 5000  # columns of an assignment, tables times towers, that a solver takes all at once
_RESTARTS = 4  # the best of the starts, where columns are few; else the best one
_ROUNDS = 12
_SETTLED = 1e-2  # a round that wins less than this part of the cost is the last


@dataclass(frozen=True)
class Clustering:
    """Tables in towers.

    Parameters
    ----------
    assignment : Assignment
        Towers of the tables, cost (sum over features of the squared distance to the centre) and its proven bound, given
        the centres.
    excess : ndarray
        ``[K]`` by how much each load had to break its limits, as a part of its mean.
    excess_bound : float
        The sum of them cannot be smaller.
    """

    assignment: Assignment
    excess: np.ndarray
    excess_bound: float


def cluster(
    points: np.ndarray,
    sizes: np.ndarray,
    loads: Sequence[Load],
    allowed: np.ndarray,
    *,
    seed: int = 0,
    seconds: float = DEFAULT_SECONDS,
) -> Clustering:
    """Find towers of tables that lie close together.

    Centres are found with tables that can be shared out among towers, from several random starts: a linear program a
    round, whose solution is nearly whole. From the best centres on every table goes to one tower, until that changes
    nothing any more. Where that cannot be proven, annealing improves towers and centres first: centres
    that fit make a proof easier.

    Parameters
    ----------
    points : ndarray
        ``[N, dims]`` of the tables, the mean of their features'.
    sizes : ndarray
        ``[N]`` their numbers of features.
    loads : sequence of Load
        What limits towers. Where nothing fits, limits are widened by the least that helps.
    allowed : ndarray
        ``[N, T]`` bool: where a table may go.
    seed : int
        Of the starts.
    seconds : float
        For one assignment with its proof, about, or for the smallest excess.

    Raises
    ------
    InputError
        If the solver finds no towers in that time.
    """
    rng, few = np.random.default_rng(seed), allowed.size <= _FEW
    excess, excess_bound, is_widened = np.zeros(len(loads)), 0.0, False

    def widen() -> None:
        nonlocal loads, excess, excess_bound, is_widened
        if is_widened:
            raise InputError(f"no towers were found in {seconds:g} seconds, although the limits can be kept")
        is_widened = True
        excess, excess_bound = smallest_excess(loads, allowed, seconds=seconds)
        loads = [load.widened(part) for load, part in zip(loads, excess, strict=True)]

    starts = [start(points, sizes, allowed, rng) for _ in range(_STARTS)]
    starts.sort(key=lambda centres: float(np.where(allowed, costs(points, sizes, centres), np.inf).min(1).sum()))
    best: tuple[float, np.ndarray] | None = None
    for centres in starts[: _RESTARTS if few else 1]:
        before = np.inf
        for _ in range(_ROUNDS):
            relaxed: Relaxation | None = relax(costs(points, sizes, centres), loads, allowed)
            if relaxed is None:
                widen()
                continue
            centres = means(points, sizes, relaxed.shares, centres)
            if relaxed.cost > before * (1 - _SETTLED):
                break
            before = relaxed.cost
        if best is None or before < best[0]:
            best = before, centres
    assert best is not None
    centres = best[1]
    kept: Assignment | None = None
    for _ in range(_ROUNDS):
        cost = costs(points, sizes, centres)
        found = (assign if few else draft)(cost, loads, allowed, seconds=seconds / (4 if few else 6))
        if found is None:
            widen()
            continue
        unchanged = kept is not None and (found.towers == kept.towers).all()
        kept = found
        if unchanged or found.gap > GAP:
            break
        centres = means(points, sizes, found.towers, centres)
    assert kept is not None
    if kept.gap > GAP:
        towers = anneal(points, sizes, loads, allowed, kept.towers, rng=rng, seconds=seconds / 2)
        centres = means(points, sizes, towers, centres)
        found = assign(costs(points, sizes, centres), loads, allowed, known=towers, seconds=seconds * 0.45)
        assert found is not None
        kept = found
    return Clustering(kept, excess, excess_bound)
