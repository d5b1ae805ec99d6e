"""Differences of models that were trained with the same seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with its 95 % confidence interval by Student's t.

    Parameters
    ----------
    mean : float
        NaN without seeds.
    half_width : float
        Of the interval; infinite below two seeds.
    count : int
        Seeds.
    """

    mean: float
    half_width: float
    count: int

    @property
    def low(self) -> float:
        return self.mean - self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    from scipy import stats

    count = len(values)
    mean = math.fsum(values) / count if count else math.nan
    if count < 2:
        return Estimate(mean, math.inf, count)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(mean, float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count), count)


def needs_more(estimated: Estimate, half_width: float, least: int, most: int) -> bool:
    """Whether another seed is worth training for."""
    return estimated.count < least or (estimated.half_width > half_width and estimated.count < most)
