"""What a tower has to carry, and how unequal towers may be."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dmt_kernels.spec import InputError, Table

LOADS = ("features", "bytes", "lookups", "flops")
DEFAULT_SLACK = 0.1
_VALUE_BYTES = 4


@dataclass(frozen=True)
class Load:
    """One kind of load: what every table adds to its tower, and between what limits a tower's sum is to lie.

    Parameters
    ----------
    name : str
        One of `LOADS`.
    weights : ndarray
        ``[N]`` float64 of the tables. Of ``flops`` it is the width in columns: a module's FLOPs grow with its square.
    counted : ndarray
        ``[N]`` the weights as the limits see them: those of `oversized` tables are cut down to ``high``.
    mean : float
        Of the counted weights per tower: with oversized tables, what the others leave to each other.
    low, high : float
        Limits of a tower's counted sum.
    oversized : tuple of int
        Tables that alone break the slack.
    """

    name: str
    weights: np.ndarray
    counted: np.ndarray
    mean: float
    low: float
    high: float
    oversized: tuple[int, ...] = ()

    def sums(self, towers: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
        """``[count]`` loads of the towers, of tables in ``towers``."""
        return np.bincount(towers, self.weights, count)

    def excess(self, towers: np.ndarray, count: int) -> float:
        """By how much of the mean the worst tower lies outside the limits; 0 if none does."""
        sums = np.bincount(towers, self.counted, count)
        return max(0.0, (sums.max() - self.high) / self.mean, (self.low - sums.min()) / self.mean) if self.mean else 0.0

    def widened(self, excess: float) -> "Load":
        """Return the same with limits wider by ``excess`` of the mean."""
        room = excess * self.mean
        return dataclasses.replace(self, low=self.low - room, high=self.high + room)


def tower_loads(
    tables: Sequence[Table],
    towers: int,
    lookups: Mapping[str, float] | None = None,
    slack: float | Mapping[str, float] = DEFAULT_SLACK,
) -> list[Load]:
    """Weigh tables and set limits: the mean of the towers, and the slack to either side.

    A tower of the floor or ceiling of the mean number of features is always allowed: in its number of features, and in
    every load to which all features add alike. A table that is larger than a tower may be is counted as if it were just
    that large, and the others are balanced among the towers without one.

    Parameters
    ----------
    tables : sequence of Table
        All tables.
    towers : int
        ``T``.
    lookups : mapping of str to float, optional
        Expected ids per sample of every feature; 1 where not given.
    slack : float or mapping of str to float
        Part of the mean, of all loads or by name; `inf` leaves one out.

    Raises
    ------
    InputError
        For an unknown load, or a slack that is negative or no number.
    """
    given = (
        dict.fromkeys(LOADS, slack)
        if isinstance(slack, int | float)
        else {**dict.fromkeys(LOADS, DEFAULT_SLACK), **slack}
    )
    for name, part in given.items():
        if name not in LOADS:
            raise InputError(f"slack of {name!r}: choose of {', '.join(LOADS)}")
        if not part >= 0:
            raise InputError(f"slack {part:g} of {name} is not at least 0")
    features = np.array([len(table.features) for table in tables], float)
    weights = {
        "features": features,
        "bytes": np.array([table.rows * table.dim * _VALUE_BYTES for table in tables], float),
        "lookups": np.array([sum((lookups or {}).get(f, 1.0) for f in table.features) for table in tables]),
        "flops": features * [table.dim for table in tables],
    }
    mean = features.sum() / towers
    whole = (math.floor(mean) / mean, math.ceil(mean) / mean)
    result = []
    for name in LOADS:
        below, above = max(0.0, 1 - given[name]), 1 + given[name]
        if name == "flops":
            below, above = math.sqrt(below), math.sqrt(above)
        per_feature = weights[name] / features
        if np.ptp(per_feature) <= 1e-9 * per_feature.max():
            below, above = min(below, whole[0]), max(above, whole[1])
        result.append(_limit(name, weights[name], towers, below, above))
    # No tower is empty, whatever the slack.
    result[0] = dataclasses.replace(result[0], low=max(1.0, result[0].low))
    return result


def _limit(name: str, weights: np.ndarray, towers: int, below: float, above: float) -> Load:
    big = np.zeros(len(weights), bool)
    mean = float(weights.sum()) / towers
    while (more := (weights > above * mean * (1 + 1e-9)) & ~big).any() and big.sum() + more.sum() < towers:
        big |= more
        mean = float(weights[~big].sum()) / (towers - big.sum())
    counted = np.minimum(weights, above * mean) if big.any() else weights
    return Load(name, weights, counted, mean, below * mean, above * mean, tuple(np.flatnonzero(big).tolist()))
