"""What is tuned: the space that trials are drawn from, the same for flat and multi-tower models.

| option | drawn |
|---|---|
| dense_lr | log-uniform in [3e-4, 1e-2] |
| table_lr | log-uniform in [3e-3, 3e-1] |
| table_weight_decay | log-uniform in [1e-5, 1e-2] |
| table_optimizer | rowwise_adagrad or adagrad |
| batch_size | 512, 1024 or 2048 |
| tower_lr | log-uniform in [3e-4, 1e-2]; flat models have none |

The first trial is the package's defaults, which have no decay. The others are points of a scrambled Halton sequence
(Halton, 1960; Owen, 2017): random, but with every option's range covered evenly by few of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dmt_kernels.train.config import TrainConfig

SEED = 0  # by it no two options of 20 trials are correlated (0.2 in rank at most; with most seeds it is 0.3 or 0.4)
RANGES = {"dense_lr": (3e-4, 1e-2), "table_lr": (3e-3, 3e-1), "table_weight_decay": (1e-5, 1e-2)}
TOWER_RANGES = {"tower_lr": (3e-4, 1e-2)}
CHOICES: dict[str, list[Any]] = {"table_optimizer": ["rowwise_adagrad", "adagrad"], "batch_size": [512, 1024, 2048]}

Options = dict[str, Any]  # of TrainConfig


def ranges(towers: bool) -> dict[str, tuple[float, float]]:
    """Numbers that are drawn, for multi-tower or for flat models."""
    return RANGES | TOWER_RANGES if towers else RANGES


def draw_trials(count: int, *, towers: bool = False) -> list[Options]:
    """Options of the trials: more of them begin with the same, and towers have those of flat models and more."""
    from scipy.stats import qmc

    dims = len(RANGES) + len(CHOICES) + len(TOWER_RANGES)
    points = qmc.Halton(dims, rng=np.random.default_rng(SEED)).random(count)
    return [{}, *(_options_at(point, towers) for point in points)][:count]


def _options_at(point: np.ndarray, towers: bool) -> Options:
    drawn: Options = {}
    shares = dict(zip([*RANGES, *CHOICES, *TOWER_RANGES], point.tolist(), strict=True))
    for name, (low, high) in ranges(towers).items():
        drawn[name] = _rounded(low * (high / low) ** shares[name])
    for name, some in CHOICES.items():
        drawn[name] = some[int(shares[name] * len(some))]
    return drawn


def draw_near(options: Options, count: int, step: int, *, towers: bool = False) -> list[Options]:
    """Options near given ones: numbers times a log-normal factor, a sixth of their range wide and less with every step.

    Parameters
    ----------
    options : dict
        The middle; options it does not name have their defaults.
    count : int
        How many.
    step : int
        From 1: the width is a sixth of the range over `step`, and other choices are drawn with probability 1/4 over it.
    towers : bool
        Whether they are of multi-tower models.
    """
    rng = np.random.default_rng([SEED, step])
    middle = {name: getattr(TrainConfig, name) for name in [*ranges(towers), *CHOICES]} | options
    return [_options_near(middle, step, towers, rng) for _ in range(count)]


def _options_near(middle: Options, step: int, towers: bool, rng: np.random.Generator) -> Options:
    drawn: Options = {}
    for name, (low, high) in ranges(towers).items():
        factor = math.exp(rng.normal(0, math.log(high / low) / 6 / step))
        drawn[name] = _rounded(min(max(max(middle[name], low) * factor, low), high))
    for name, some in CHOICES.items():
        # Both are drawn every time, so that an option does not depend on what the ones before have drawn.
        moves, other = rng.random() < 0.25 / step, some[rng.integers(len(some))]
        drawn[name] = other if moves else middle[name]
    return drawn


def _rounded(value: float) -> float:
    """Three digits are enough, and read well in a table."""
    return float(f"{value:.3g}")
