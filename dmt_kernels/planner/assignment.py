"""Tables to towers at the least cost, every load within its limits: solved by HiGHS, with a proven bound.

SciPy brings HiGHS, and scikit-learn, which training needs anyway, brings SciPy. It is imported by who solves.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dmt_kernels.planner.loads import Load
from dmt_kernels.planner.program import DEFAULT_SECONDS, GAP, ROUNDING, branch, limits, rows, scale

_OFFERED = 12  # towers per table that are a linear program starts with
_CHEAP = 6  # and a draft is made of
_FAR = 0.2  # from a proof, where a draft ends
_UNITS = 20  # per table, where loads are counted in units


@dataclass(frozen=True)
class Assignment:
    """Where tables go.

    Parameters
    ----------
    towers : ndarray
        ``[N]`` tower of every table.
    cost : float
        Its cost.
    bound : float
        No assignment within the limits costs less.
    """

    towers: np.ndarray
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """What could be won at most, as a part of the cost."""
        return (self.cost - self.bound) / self.cost if self.cost > 0 else 0.0


@dataclass(frozen=True)
class Relaxation:
    """Tables shared out among towers at the least cost.

    Parameters
    ----------
    shares : ndarray
        ``[N, T]``, sums to 1 over towers; few are not 0 or 1.
    cost : float
        The least cost, also a bound for whole tables.
    reduced : ndarray
        ``[N, T]`` how much the bound rises, at least, for solutions in which a table is in a tower.
    """

    shares: np.ndarray
    cost: float
    reduced: np.ndarray


def relax(cost: np.ndarray, loads: Sequence[Load], allowed: np.ndarray) -> Relaxation | None:
    """Solve the problem in which tables can be shared out; None if even that has no solution.

    Starts with the cheapest towers of every table, and adds what the prices (duals) of the solution show to be missing,
    until nothing is: then the solution is that of the whole problem.

    Parameters
    ----------
    cost : ndarray
        ``[N, T]`` of a table in a tower.
    loads : sequence of Load
        What limits towers.
    allowed : ndarray
        ``[N, T]`` bool.
    """
    from scipy.optimize import linprog
    from scipy.sparse import vstack

    loads = distinct(loads)
    tables, towers = cost.shape
    offered = allowed & (np.argsort(np.argsort(np.where(allowed, cost, np.inf), axis=1), axis=1) < _OFFERED)
    while True:
        i, t = np.nonzero(offered)
        once, sums = rows(i, t, tables, towers, loads)
        low, high = limits(loads, towers)
        solved = linprog(
            cost[i, t],
            A_eq=once,
            b_eq=np.ones(tables),
            A_ub=vstack([sums, -sums]),
            b_ub=np.concatenate([high, -low]),
            method="highs-ipm" if len(i) > 4000 else "highs-ds",
        )
        if solved.x is None:
            if offered.sum() == allowed.sum():
                return None
            offered = allowed
            continue
        prices = (solved.ineqlin.marginals[: len(high)] - solved.ineqlin.marginals[len(high) :]).reshape(-1, towers)
        reduced = cost - solved.eqlin.marginals[:, None]
        for load, price in zip(loads, prices, strict=True):
            reduced -= (load.counted / scale(load))[:, None] * price
        missing = allowed & ~offered & (reduced < -1e-9 * max(1.0, cost.max()))
        if not missing.any():
            shares = np.zeros(cost.shape)
            shares[i, t] = solved.x
            return Relaxation(shares, float(solved.fun), reduced)
        offered = offered | missing


def draft(cost: np.ndarray, loads: Sequence[Load], allowed: np.ndarray, *, seconds: float) -> Assignment | None:
    """Put every table into one tower, quickly; None if no solution was found.

    Branch and bound over the few columns (a table in a tower) that the relaxation shows to be cheap. Solutions with
    another column cost at least its reduced cost more than the relaxation: a proof where tables are alike. Where they
    are not, it ends far from one.

    Parameters
    ----------
    cost, loads, allowed : ndarray, sequence of Load, ndarray
        As for :func:`relax`.
    seconds : float
        At most; where few columns have no solution, as much again for all of them.
    """
    loads = distinct(loads)
    relaxed = relax(cost, loads, allowed)
    if relaxed is None:
        return None
    rank = np.argsort(np.argsort(np.where(allowed, relaxed.reduced, np.inf), axis=1), axis=1)
    offered = allowed & (rank < _CHEAP)
    found, bound = branch(cost, loads, offered, gap=_FAR, seconds=seconds)
    if found is None:
        return assign(cost, loads, allowed, gap=_FAR, seconds=seconds)
    others = relaxed.cost + relaxed.reduced[allowed & ~offered].min(initial=np.inf)
    return Assignment(*found, min(found[1], max(relaxed.cost, min(bound, others))))


def assign(
    cost: np.ndarray,
    loads: Sequence[Load],
    allowed: np.ndarray,
    *,
    known: np.ndarray | None = None,
    gap: float = GAP,
    seconds: float = DEFAULT_SECONDS,
) -> Assignment | None:
    """Put every table into one tower, by branch and bound over all columns; None if no solution was found.

    Parameters
    ----------
    cost, loads, allowed : ndarray, sequence of Load, ndarray
        As for :func:`relax`.
    known : ndarray, optional
        ``[N]`` towers that keep the limits, kept unless better ones are found.
    gap : float
        End when the cost is proven to be within this part of the least.
    seconds : float
        End without a proof after about that time.
    """
    # HiGHS is not told the known towers: its bound rises more slowly with them.
    found, bound = branch(cost, distinct(loads), allowed, gap=gap, seconds=seconds)
    if np.isneginf(bound) and (relaxed := relax(cost, loads, allowed)) is not None:
        bound = relaxed.cost
    if known is not None:
        kept = known, float(cost[np.arange(len(cost)), known].sum())
        found = kept if found is None else min(found, kept, key=lambda towers: towers[1])
    return None if found is None else Assignment(*found, min(found[1], bound))


def distinct(loads: Sequence[Load]) -> list[Load]:
    """Loads without those whose limits say nothing, and one instead of several that are in proportion."""
    result: list[Load] = []
    for load in loads:
        if load.low <= 0 and load.high >= load.counted.sum():
            continue
        load = Load(
            load.name, load.weights, load.counted / scale(load), 1.0, load.low / scale(load), load.high / scale(load)
        )
        for k, other in enumerate(result):
            if np.allclose(other.counted, load.counted, rtol=1e-9):
                result[k] = dataclasses.replace(other, low=max(other.low, load.low), high=min(other.high, load.high))
                break
        else:
            result.append(load)
    return [_whole(load) for load in result]


def _whole(load: Load) -> Load:
    """The same load in units, with limits that sums of units can meet, if its weights are few units each.

    A linear program cannot know that no tower has 14.8 features; to be told so raises its bound.
    """
    unit = load.counted[load.counted > 0].min()
    units = np.rint(load.counted / unit)
    room = ROUNDING / unit
    if load.counted.sum() > _UNITS * unit * len(units) or np.abs(units - load.counted / unit).max() > room:
        return load
    return Load(load.name, load.weights, units, 1.0, np.ceil(load.low / unit - room), np.floor(load.high / unit + room))
