"""Tables change places between two towers at a time, many such pairs at once, at a falling temperature."""

import time
from collections.abc import Sequence

import numpy as np

from dmt_kernels.planner.assignment import distinct
from dmt_kernels.planner.loads import Load
from dmt_kernels.planner.program import limits, scale

_STEPS = 8000
_WARM, _COLD = 1.0, 0.375  # temperature, in mean costs of a feature
_PRICE = 30.0  # of a mean table's load outside the limits, in mean costs of a feature, to begin with
_NEAR = 7.5  # squared distance of towers that makes a meeting rarer by a factor of e, in mean costs of a feature
_SLOTS = 24  # of a tower, looked at in a step
_SPARE = 2  # empty slots, so that tables can move alone
_LOOK = 200  # steps from one look at the whole to the next
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

    A step pairs towers, near ones rather. Every pair exchanges two tables, or moves one, drawn out of all ways to do so
    by what they win (a heat bath). Centres follow at once: a step is judged by the distances to the centres after it.
    Limits may be broken at a price that grows without bounds: there are hardly any ways to go that never break one.
    On a machine that is too slow for all steps within `seconds`, temperature falls by the clock: towers then differ.

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
    loads, (tables, count) = distinct(loads), allowed.shape
    slots = _slots(towers, count)
    # Values of tables, with an end for empty slots. Sums of pulls over sums of sizes are centres.
    pulls = np.pad(points * sizes[:, None], ((0, 1), (0, 0))).astype(np.float32)
    sizes = np.append(sizes, 0).astype(np.float32)
    weights = np.pad(np.stack([load.counted / scale(load) for load in loads]), ((0, 0), (0, 1)))
    light = weights.astype(np.float32)
    may = np.pad(allowed, ((0, 1), (0, 0)), constant_values=True)
    low, high = (limit.reshape(-1, count)[:, :1] for limit in limits(loads, count))
    low, high = np.maximum(low, 0), np.minimum(high, weights.sum(1)[:, None])  # or a middle of no limit is none
    middle, half = (low + high) / 2, (high - low) / 2
    spread = float((np.square(points).sum(1) * sizes[:-1]).sum())
    noise = -np.log(rng.standard_exponential(_NOISE + count**2 + count * _SLOTS**2)).astype(np.float32)
    best, least, unit, step, passed, began = slots.copy(), np.inf, np.inf, 0, 0.0, time.monotonic()
    while True:
        if step % _LOOK == 0 or passed >= 1:
            sums, held, load = pulls[slots].sum(1), sizes[slots].sum(1), weights[:, slots].sum(2) - middle
            cost = spread - float(_closeness(np.square(sums).sum(1), held).sum())
            if step == 0 or (cost < least and (np.abs(load) <= half).all()):
                best, least = slots.copy(), cost
            unit = min(unit, cost / float(sizes.sum()))
            if passed >= 1 or unit <= 0:
                break
            centres = _closeness(sums, held[:, None])
            apart = np.square(centres[:, None] - centres).sum(2) / (_NEAR * unit)
            np.fill_diagonal(apart, np.inf)
        passed = max(step / _STEPS, (time.monotonic() - began) / seconds)
        step += 1
        price = _PRICE * tables / count / max(1 - passed, 1e-3)
        a, b = _pair(apart, noise[rng.integers(_NOISE) :])
        seen = rng.permutation(slots.shape[1])[:_SLOTS]
        i, j = slots[a][:, seen], slots[b][:, seen]
        outside = np.zeros((len(a), len(seen), len(seen)), np.float32)
        for weight, full, empty, most in zip(light, load[:, a], load[:, b], half.astype(np.float32), strict=True):
            heavier = weight[j][:, None] - weight[i][:, :, None]
            outside += _outside(full, heavier, most)
            outside += _outside(empty, -heavier, most)
        energy = outside * np.float32(price)
        energy -= _won(sums[a], sums[b], held[a], held[b], pulls[i], pulls[j], sizes[i], sizes[j]) / np.float32(unit)
        energy[~(may[i, b[:, None]][:, :, None] & may[j, a[:, None]][:, None])] = np.inf
        now = (np.maximum(np.abs(load[:, a]) - half, 0) + np.maximum(np.abs(load[:, b]) - half, 0)).sum(0)
        p, q, go = _heat_bath(energy, price * now, _WARM + (_COLD - _WARM) * passed, noise[rng.integers(_NOISE) :])
        a, b, p, q = a[go], b[go], seen[p], seen[q]
        i, j = slots[a, p], slots[b, q]
        slots[a, p], slots[b, q] = j, i
        for totals, values in ((sums, pulls), (held, sizes), (load.T, weights.T)):
            totals[a] += values[j] - values[i]
            totals[b] -= values[j] - values[i]
    result = np.empty(tables + 1, np.int64)
    result[best] = np.arange(count)[:, None]
    return result[:-1]


def _slots(towers: np.ndarray, count: int) -> np.ndarray:
    """Tables of every tower, ``[T, room]``; N where a slot is empty."""
    slots = np.full((count, int(np.bincount(towers).max()) + _SPARE), len(towers))
    for t in range(count):
        members = np.flatnonzero(towers == t)
        slots[t, : len(members)] = members
    return slots


def _closeness(sums: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Sums over sizes; 0 of an empty tower."""
    return sums / np.maximum(held, np.float32(_NONE))


def _pair(apart: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Towers that choose each other, by distance and chance."""
    noise = noise[: apart.size].reshape(apart.shape)
    choice, every = (apart - noise - noise.T).argmin(1), np.arange(len(apart))
    first = np.flatnonzero((choice[choice] == every) & (every < choice))
    return first, choice[first]


def _won(
    sums_a: np.ndarray,
    sums_b: np.ndarray,
    held_a: np.ndarray,
    held_b: np.ndarray,
    gone: np.ndarray,
    come: np.ndarray,
    smaller: np.ndarray,
    larger: np.ndarray,
) -> np.ndarray:
    """By how much the cost falls if a table of tower a changes places with one of b, ``[P, tables of a, of b]``.

    The squared distances of tables to their mean are those to 0 less the squared norm of their sum over their number.
    """
    between = (
        np.square(gone).sum(2)[:, :, None] + np.square(come).sum(2)[:, None] - 2 * (gone @ come.transpose(0, 2, 1))
    )
    moved = larger[:, None] - smaller[:, :, None]
    won = _closeness(_squares(sums_a, gone, come, between), held_a[:, None, None] + moved)
    there = _squares(sums_b, come, gone, between.transpose(0, 2, 1)).transpose(0, 2, 1)
    won += _closeness(there, held_b[:, None, None] - moved)
    now = _closeness(np.square(sums_a).sum(1), held_a) + _closeness(np.square(sums_b).sum(1), held_b)
    return won - now[:, None, None]


def _squares(sums: np.ndarray, gone: np.ndarray, come: np.ndarray, between: np.ndarray) -> np.ndarray:
    """``[P, gone, come]``: the squared norms of sums ``[P, dims]`` less one pull and with another one."""
    sums = sums[:, :, None]
    return np.square(sums).sum(1)[:, None] + 2 * ((come @ sums).transpose(0, 2, 1) - gone @ sums) + between


def _outside(load: np.ndarray, heavier: np.ndarray, half: np.ndarray) -> np.ndarray:
    """By how much loads ``[P]``, counted from the middle, are outside the limits when they are heavier."""
    after = np.abs(heavier + load.astype(np.float32)[:, None, None])
    after -= half
    return np.maximum(after, 0, out=after)


def _heat_bath(
    energy: np.ndarray, now: np.ndarray, temperature: float, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one of ``[P, p, q]`` for every row, with weights ``exp(-energy / temperature)``; rows that change at all."""
    rows, ways = len(energy), energy[0].size
    drawn = (noise[: energy.size].reshape(energy.shape) - energy / np.float32(temperature)).reshape(rows, ways)
    chosen = drawn.argmax(1)
    stay = noise[energy.size : energy.size + rows] - now / temperature
    go = np.flatnonzero(drawn[np.arange(rows), chosen] > stay)
    return chosen[go] // energy.shape[2], chosen[go] % energy.shape[2], go
