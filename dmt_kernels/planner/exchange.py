"""Tables change places among a few towers at a time, where all towers at once are too many for a solver."""

import time
from collections.abc import Sequence

import numpy as np

from dmt_kernels.planner.assignment import distinct, restrict
from dmt_kernels.planner.centres import costs, means
from dmt_kernels.planner.loads import Load
from dmt_kernels.planner.program import GAP, branch

_TOGETHER = 12  # towers that exchange tables, at first
_MORE = 2  # so many more
_PATIENCE = 8  # after so many exchanges in vain
_SECONDS = 3.0  # at most, an exchange


def exchange(
    points: np.ndarray,
    sizes: np.ndarray,
    loads: Sequence[Load],
    allowed: np.ndarray,
    towers: np.ndarray,
    *,
    rng: np.random.Generator,
    seconds: float,
) -> np.ndarray:
    """Improve towers that keep the limits, and their centres with them, as long as time allows or it helps.

    An exchange shares all tables of a few towers out among these anew, at the least cost: a small integer program.
    Towers meet when tables of one would rather be in another, drawn by how much they would win.

    Parameters
    ----------
    points, sizes, loads, allowed : ndarray, ndarray, sequence of Load, ndarray
        As for :func:`~dmt_kernels.planner.clustering.cluster`.
    towers : ndarray
        ``[N]`` tower of every table.
    rng : Generator
        Draws towers.
    seconds : float
        In all.

    Returns
    -------
    ndarray
        ``[N]`` towers, no dearer.
    """
    ends = time.monotonic() + seconds
    loads, towers = distinct(loads), towers.copy()
    count, vain = allowed.shape[1], 0
    together = min(_TOGETHER, count)
    centres = means(points, sizes, towers, np.zeros((count, points.shape[1])))
    cost = costs(points, sizes, centres)
    tried = np.zeros(count)
    while together <= count and (left := ends - time.monotonic()) > 0:
        here = cost[np.arange(len(cost)), towers]
        wish = np.zeros((count, count))  # what tables of a tower would win in another one
        np.add.at(wish, towers, np.where(allowed, np.maximum(here[:, None] - cost, 0), 0))
        group = _draw(wish, tried, together, rng)
        tables = np.flatnonzero(np.isin(towers, group))
        square = np.ix_(tables, group)
        found, _ = branch(
            cost[square], restrict(loads, tables), allowed[square], gap=GAP / 5, seconds=min(_SECONDS, left)
        )
        if found is not None and found[1] < here[tables].sum() * (1 - 1e-9):
            towers[tables] = group[found[0]]
            tried[group] = 0
            centres, vain = means(points, sizes, towers, centres), 0
            cost = costs(points, sizes, centres)
            continue
        tried[group[0]] += 1
        vain += 1
        if vain == _PATIENCE:
            together, vain = together + _MORE, 0
    return towers


def _draw(wish: np.ndarray, tried: np.ndarray, together: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a tower by its greatest wish, halved by every trial in vain, and others by wishes to and from the group."""
    urge = wish.max(1) * 0.5**tried + 1e-12
    group = [int(rng.choice(len(wish), p=urge / urge.sum()))]
    mutual = wish + wish.T
    while len(group) < together:
        pull = mutual[group].sum(0) * (1 + rng.random(len(wish)))
        pull[group] = -1
        group.append(int(pull.argmax()))
    return np.array(group)
