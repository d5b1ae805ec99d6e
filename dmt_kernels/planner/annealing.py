"""Every tower gives a table or two up, and these are dealt out anew, again and again at a falling temperature."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from dmt_kernels.planner.assignment import distinct
from dmt_kernels.planner.loads import Load
from dmt_kernels.planner.program import ROUNDING

_STEPS = 500_000
_DRAWS = 4  # the best of so many: single ones end far off now and then


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
    points : ndarray
        ``[N, dims]`` of the tables.
    sizes : ndarray
        ``[N]`` their numbers of features.
    loads : sequence of Load
        What limits towers.
    allowed : ndarray
        ``[N, T]`` bool: where a table may go.
    towers : ndarray
        ``[N]`` tower of every table.
    rng : Generator
        Draws tables and noise.
    seconds : float
        At most.

    Returns
    -------
    ndarray
        ``[N]`` towers, the best seen that keep the limits; no dearer.
    """
    from dmt_kernels import _C

    loads, count = distinct(loads), allowed.shape[1]
    weights = np.stack([load.counted for load in loads])
    mean = weights.sum(1) / count
    lows = np.maximum([load.low for load in loads] / mean, 0)
    highs = np.minimum([load.high for load in loads] / mean, count)  # or a middle of no limit is none
    at_once = min(torch.get_num_threads(), _DRAWS)
    draw = partial(
        _C.anneal,
        points,
        sizes,
        weights / mean[:, None],
        lows - ROUNDING,
        highs + ROUNDING,
        allowed,
        towers,
        steps=_STEPS,
        seconds=seconds / math.ceil(_DRAWS / at_once),
    )
    with ThreadPoolExecutor(at_once) as pool:
        draws = pool.map(lambda seed: draw(seed=seed), rng.integers(1 << 62, size=_DRAWS).tolist())
    return min(draws, key=lambda found: found[1])[0]
