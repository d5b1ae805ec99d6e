"""Every tower gives a table or two up, and these are dealt out anew, again and again at a falling temperature."""

import time
from collections.abc import Sequence

import numpy as np

from dmt_kernels.planner.assignment import distinct
from dmt_kernels.planner.loads import Load
from dmt_kernels.planner.program import ROUNDING

_STEPS = 100_000
_WARM = 0.9  # temperature to begin with, in mean costs of a feature; 0 at the end
_PRICE = 45.0  # of a mean table's load outside a limit, in mean costs of a feature, to begin with
_TWO = 0.3  # of the steps deal out two tables of a tower, not one
_ALIKE = 0.6  # of the steps deal out tables that are about as heavy
_UNLIKE = 0.02  # logarithm of weights, added to how far they are apart
_LIGHT = 1e-3  # of a mean table's load: differences of lighter ones hardly count
_SPARE = 2  # empty slots of the fullest tower, so that tables can move alone
_GRACE = 0.1  # of the time, before the clock counts
_LOOK = 20  # steps from one look at the whole to the next
_NOISE = 1 << 20  # random numbers, drawn once: a step reads them from a random place on
_NONE = 0.5  # features: fewer are none, whose squared norm divided by this is 0


def anneal(
    points: np.ndarray,
    sizes: np.ndarray,
    loads: Sequence[Load],
    allowed: np.ndarray,
    towers: np.ndarray,
    *,
    rng: np.random.Generator,
    seconds: float,
) -> np.ndarray:
    """Improve towers that keep the limits, and their centres with them, by simulated annealing.

    In a step every tower gives up a unit: a table, two of them, or none. Units are dealt out anew, one to a tower: a
    linear assignment (Thompson and Orlin's cyclic transfers, all at once). As every tower gets one unit only, what it
    will cost, with its centre after the step and what its load is outside the limits, is known beforehand for every
    unit: the step is the best of all permutations. Noise in proportion to the temperature may make it any of them.
    Limits may be broken at a price that grows without bounds: there are hardly any ways to go that never break one.
    On a machine that takes longer than `seconds` for all steps, temperature falls by the clock: towers then differ.

    Parameters
    ----------
    points, sizes, loads, allowed, towers, rng : ndarray, ndarray, sequence of Load, ndarray, ndarray, Generator
        As for :func:`~dmt_kernels.planner.exchange.exchange`.
    seconds : float
        At most.

    Returns
    -------
    ndarray
        ``[N]`` towers, the best seen that keep the limits; no dearer.
    """
    from scipy.optimize import linear_sum_assignment

    loads, (tables, count) = distinct(loads), allowed.shape
    slots = _slots(towers, count)
    # Values of tables, with an end for empty slots. Sums of pulls over sums of sizes are centres.
    pulls = np.pad(points * sizes[:, None], ((0, 1), (0, 0)))
    sizes = np.append(sizes, 0)
    weights = np.stack([load.counted for load in loads])
    mean = weights.sum(1, keepdims=True) / count
    weights = np.pad(weights / mean, ((0, 0), (0, 1)))
    every, pinned = np.arange(count)[:, None], not allowed.all()
    may = np.pad(allowed, ((0, 1), (0, 0)), constant_values=True)
    low = np.maximum(np.array([[load.low] for load in loads]) / mean, 0)
    high = np.minimum(np.array([[load.high] for load in loads]) / mean, count)  # or a middle of no limit is none
    middle, half = (low + high) / 2, (high - low) / 2 + ROUNDING
    heavy = np.log(weights + _LIGHT * count / tables)
    spread = float((np.square(points).sum(1) * sizes[:-1]).sum())
    noise = rng.gumbel(size=_NOISE + count**2)
    best, least, step, passed, began = slots.copy(), np.inf, 0, 0.0, time.monotonic() + seconds * _GRACE
    while True:
        if step % _LOOK == 0 or passed >= 1:
            sums, held, load = pulls[slots].sum(1), sizes[slots].sum(1), weights[:, slots].sum(2) - middle
            cost = spread - float(_closeness(np.square(sums).sum(1), held).sum())
            if step == 0 or (cost < least and (np.abs(load) <= half).all()):
                best, least = slots.copy(), cost
            if passed >= 1 or least <= 0:
                break
        passed = max(step / _STEPS, (time.monotonic() - began) / (seconds * (1 - _GRACE)))
        step += 1
        drawn = _draw(slots, heavy, rng)
        units = slots[every, drawn]
        pull, size, weight = pulls[units].sum(1), sizes[units].sum(1), weights[:, units].sum(2)
        sums, held, load = sums - pull, held - size, load - weight  # what towers keep
        unit = least / sizes.sum()
        price = unit * _PRICE * tables / count / max(1 - passed, 1e-3)
        energy = _energy((sums, held, load), (pull, size, weight), half, price)
        energy -= unit * _WARM * (1 - passed) * noise[rng.integers(_NOISE) :][: energy.size].reshape(energy.shape)
        if pinned:
            energy[~may[units].all(1).T] = np.inf
        _, new = linear_sum_assignment(energy)
        slots[every, drawn] = units[new]
        sums, held, load = sums + pull[new], held + size[new], load + weight[:, new]
    result = np.empty(tables + 1, np.int64)
    result[best] = every
    return result[:-1]


def _slots(towers: np.ndarray, count: int) -> np.ndarray:
    """Tables of every tower, ``[T, room]``; N where a slot is empty."""
    slots = np.full((count, int(np.bincount(towers).max()) + _SPARE), len(towers))
    for t in range(count):
        members = np.flatnonzero(towers == t)
        slots[t, : len(members)] = members
    return slots


def _draw(slots: np.ndarray, heavy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a slot or two of every tower, ``[T, 1 or 2]``: any, or rather those about as heavy as some table."""
    apart: np.ndarray | float = 0.0
    if rng.random() < _ALIKE:
        weights = heavy[rng.integers(len(heavy))]
        apart = np.abs(weights[slots] - weights[rng.integers(len(weights) - 1)])
    many = 2 if rng.random() < _TWO else 1
    return ((apart + _UNLIKE) * rng.random(slots.shape)).argpartition(many - 1, axis=1)[:, :many]


def _energy(
    kept: tuple[np.ndarray, np.ndarray, np.ndarray],
    units: tuple[np.ndarray, np.ndarray, np.ndarray],
    half: np.ndarray,
    price: float,
) -> np.ndarray:
    """What towers cost with units, ``[tower, unit]``, but for the squared distances of tables to 0, which never change.

    Of what towers keep, and of units: sums of pulls ``[T, dims]`` and of sizes ``[T]``, and loads ``[K, T]``, those of
    towers counted from the middle between the limits.
    """
    (sums, held, load), (pull, size, weight) = kept, units
    outside = np.zeros((len(held), len(size)))
    for full, more, most in zip(load, weight, half, strict=True):
        outside += np.maximum(np.abs(full[:, None] + more) - most, 0)
    squares = np.square(sums).sum(1)[:, None] + 2 * sums @ pull.T + np.square(pull).sum(1)
    return price * outside - _closeness(squares, held[:, None] + size)


def _closeness(squares: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Squared norms of sums over sizes; 0 of an empty tower."""
    return squares / np.maximum(held, _NONE)
