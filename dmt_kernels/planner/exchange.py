"""Tables change places among a few towers at a time, where all towers at once are too many for a solver."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from dmt_kernels.planner.assignment import distinct, restrict
from dmt_kernels.planner.centres import costs, means
from dmt_kernels.planner.loads import Load
from dmt_kernels.planner.program import GAP, branch

_TOGETHER = 24  # towers that exchange tables at first, or half of all
_OFFERED = 6  # of them to a table, besides its own
_AT_ONCE = 2  # groups, a thread each
_MORE = 2  # so many more
_PATIENCE = 4  # after so many rounds in vain
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
    together = min(_TOGETHER, max(2, count // _AT_ONCE), count)
    centres = means(points, sizes, towers, np.zeros((count, points.shape[1])))
    tried = np.zeros(count)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while (left := ends - time.monotonic()) > 0:
            cost = np.where(allowed, costs(points, sizes, centres), np.inf)
            here = cost[np.arange(len(cost)), towers]
            wish = np.zeros((count, count))  # what tables of a tower would win in another one
            np.add.at(wish, towers, np.maximum(here[:, None] - cost, 0))
            groups = _draw(wish, tried, together, rng)
            share = partial(_share, cost, loads, towers.copy(), seconds=min(_SECONDS, left))
            vain += 1
            for group, found in zip(groups, pool.map(share, groups), strict=True):
                tried[group[0]] += 1
                if found is not None and found[2] > 1e-9 * here.sum():
                    towers[found[0]] = found[1]
                    tried[group] = vain = 0
            centres = means(points, sizes, towers, centres)
            if vain == _PATIENCE:
                if together == count:
                    break
                together, vain = min(together + _MORE, count), 0
    return towers


def _share(
    cost: np.ndarray, loads: Sequence[Load], towers: np.ndarray, group: np.ndarray, *, seconds: float
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Share the tables of some towers out anew, at the least cost: tables, their towers, and what is won."""
    tables = np.flatnonzero(np.isin(towers, group))
    square = cost[np.ix_(tables, group)]
    now = towers[tables, None] == group
    offered = now | (np.isfinite(square) & (np.argsort(np.argsort(square, axis=1), axis=1) < _OFFERED))
    found, _ = branch(square, restrict(loads, tables), offered, known=now.argmax(1), gap=GAP / 5, seconds=seconds)
    return None if found is None else (tables, group[found[0]], float(square[now].sum()) - found[1])


def _draw(wish: np.ndarray, tried: np.ndarray, together: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw disjoint groups: a tower by its greatest wish, halved by every trial in vain, and others by wishes."""
    free = np.ones(len(wish), bool)
    groups: list[np.ndarray] = []
    mutual = wish + wish.T
    while len(groups) < _AT_ONCE and free.sum() >= together:
        urge = np.where(free, wish.max(1) * 0.5**tried + 1e-12, 0)
        group = [int(rng.choice(len(wish), p=urge / urge.sum()))]
        free[group] = False
        while len(group) < together:
            pull = np.where(free, mutual[group].sum(0) * (1 + rng.random(len(wish))), -1)
            group.append(int(pull.argmax()))
            free[group] = False
        groups.append(np.array(group))
    return groups
