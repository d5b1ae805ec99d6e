"""By how little limits have to give where nothing keeps them all."""

from collections.abc import Sequence

import numpy as np

from dmt_kernels.planner.loads import Load
from dmt_kernels.planner.packing import pack_free
from dmt_kernels.planner.program import GAP, limits, rows, scale, solve


def smallest_excess(loads: Sequence[Load], allowed: np.ndarray, *, seconds: float = 20.0) -> tuple[np.ndarray, float]:
    """By how little the limits can be broken.

    Every load is looked at beside the first one alone, before all are together: the first load's excess is shared out
    among these programs, so that their bounds may be added up, and to be told them spares the last program most of its
    proof.

    Parameters
    ----------
    loads : sequence of Load
        What limits towers; the first one is of features.
    allowed : ndarray
        ``[N, T]`` bool: where a table may go.
    seconds : float
        End without a proof after about that time.

    Returns
    -------
    excess : ndarray
        ``[K]``, of every load, as a part of its mean: with limits wider by these there is a solution.
    bound : float
        No solution has a smaller sum of them.
    """
    if len(loads) == 1:
        return _solve(loads, allowed, np.ones((1, 1)), np.zeros(1), seconds)
    weights = np.eye(len(loads))
    weights[:, 0] = 1 / (len(loads) - 1)
    least = np.zeros(len(loads))
    for k in range(1, len(loads)):
        pair = [loads[0], loads[k]]
        _, least[k] = _solve(pair, allowed, weights[[k]][:, [0, k]], np.zeros(1), seconds / (2 * len(loads)))
    return _solve(loads, allowed, weights[1:], least[1:], seconds / 2)


def _solve(
    loads: Sequence[Load], allowed: np.ndarray, weights: np.ndarray, least: np.ndarray, seconds: float
) -> tuple[np.ndarray, float]:
    """Minimise the sum of ``weights @ excess``, each entry of which is known to be at least that of ``least``."""
    from scipy.optimize import LinearConstraint
    from scipy.sparse import csr_matrix, hstack, identity, kron

    tables, towers = allowed.shape
    i, t = np.nonzero(_ordered(allowed, loads))
    once, sums = rows(i, t, tables, towers, loads)
    low, high = limits(loads, towers)
    room = kron(identity(len(loads)), np.ones((towers, 1)))
    found, bound = solve(
        np.concatenate([np.zeros(len(i)), weights.sum(0)]),
        [
            LinearConstraint(hstack([once, csr_matrix((tables, len(loads)))]).tocsr(), 1, 1),
            LinearConstraint(hstack([sums, -room]).tocsr(), -np.inf, high),
            LinearConstraint(hstack([sums, room]).tocsr(), low, np.inf),
            LinearConstraint(hstack([csr_matrix((len(least), len(i))), csr_matrix(weights)]).tocsr(), least, np.inf),
        ],
        gap=GAP / 10,
        seconds=seconds,
        parts=len(loads),
    )
    if found is None:
        place = pack_free(np.stack([load.counted / scale(load) for load in loads]), allowed)
    else:
        chosen = found[: len(i)] > 0.5
        place = np.empty(tables, np.int64)
        place[i[chosen]] = t[chosen]
    return np.array([load.excess(place, towers) for load in loads]), max(0.0, bound, float(least.sum()))


def _ordered(allowed: np.ndarray, loads: Sequence[Load]) -> np.ndarray:
    """Where towers are alike, let the k-th heaviest table go to the first k only: the rest is the same, renamed."""
    if not allowed.all():
        return allowed
    heavy = np.argsort(-sum(load.counted / scale(load) for load in loads), kind="stable")
    allowed = allowed.copy()
    for k, table in enumerate(heavy[: allowed.shape[1]]):
        allowed[table, k + 1 :] = False
    return allowed
