"""Integer programs over columns, a table in a tower each: their rows, and HiGHS, which solves them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dmt_kernels.planner.loads import Load

GAP = 0.01
DEFAULT_SECONDS = 40.0  # of an assignment with its proof
ROUNDING = 1e-7  # what solvers may be off, relative to a load's mean


def rows(i: np.ndarray, t: np.ndarray, tables: int, towers: int, loads: Sequence[Load]) -> tuple[Any, Any]:
    """Constraints over columns (table i in tower t): every table once, ``[N, n]``; loads by tower, ``[K * T, n]``."""
    from scipy.sparse import csr_matrix, vstack

    column = np.arange(len(i))
    once = csr_matrix((np.ones(len(i)), (i, column)), (tables, len(i)))
    sums = [csr_matrix((load.counted[i] / scale(load), (t, column)), (towers, len(i))) for load in loads]
    return once, vstack(sums).tocsr()


def limits(loads: Sequence[Load], towers: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of the rows of loads, ``[K * T]``: relative to the mean, or in units (`scale`)."""
    low = np.array([load.low / scale(load) for load in loads]) - ROUNDING
    # Where nothing limits a tower, all of a load does: solvers take no infinity.
    high = np.array([min(load.high, load.counted.sum()) / scale(load) for load in loads]) + ROUNDING
    return np.repeat(low, towers), np.repeat(high, towers)


def scale(load: Load) -> float:
    """What a load is divided by in programs."""
    return load.mean or 1.0


def solve(
    cost: np.ndarray, constraints: list[Any], *, gap: float, seconds: float, parts: int = 0
) -> tuple[np.ndarray | None, float]:
    """Find the cheapest columns.

    Parameters
    ----------
    cost : ndarray
        ``[n]`` of the columns, which are 0 or 1; of the last ``parts``, which are any number of at least 0.
    constraints : list of LinearConstraint
        What they have to satisfy.
    gap : float
        End when the cost is proven to be within this part of the least.
    seconds : float
        End without a proof after that time.

    Returns
    -------
    found : ndarray or None
        The best solution found.
    bound : float
        None costs less; inf if there is none at all.
    """
    from scipy.optimize import Bounds, milp

    whole = np.arange(len(cost)) < len(cost) - parts
    solved: Any = milp(
        cost,
        constraints=constraints,
        integrality=whole,
        bounds=Bounds(0, np.where(whole, 1, np.inf)),
        options={"mip_rel_gap": gap, "time_limit": max(seconds, 1.0)},
    )
    if solved.status == 2:
        return None, np.inf
    return solved.x, -np.inf if solved.mip_dual_bound is None else float(solved.mip_dual_bound)


def branch(
    cost: np.ndarray, loads: Sequence[Load], offered: np.ndarray, *, gap: float, seconds: float
) -> tuple[tuple[np.ndarray, float] | None, float]:
    """The best towers found over the offered columns with their cost, and a lower bound of any such cost."""
    from scipy.optimize import LinearConstraint

    i, t = np.nonzero(offered)
    tables, towers = cost.shape
    once, sums = rows(i, t, tables, towers, loads)
    constraints = [LinearConstraint(once, 1, 1), LinearConstraint(sums, *limits(loads, towers))]
    found, bound = solve(cost[i, t], constraints, gap=gap, seconds=seconds)
    if found is None:
        return None, bound
    chosen = found > 0.5
    place = np.empty(tables, np.int64)
    place[i[chosen]] = t[chosen]
    return (place, float(cost[np.arange(tables), place].sum())), bound
