"""How the columns that cross hosts are shared out among features."""

import heapq
import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

from dmt_kernels.spec import InputError

_Number = TypeVar("_Number", int, float)


def tower_width(dims: Sequence[int], compression: float, unit: int = 1) -> int:
    """The columns of a tower that compresses: as many as the compression allows, in units, and at least one unit."""
    return unit * max(1, math.floor(sum(dims) / compression / unit))


def even_columns(dims: Sequence[int], out_width: int) -> tuple[int, ...]:
    """Share `out_width` columns out among a tower's features in proportion to their dims, rounded up or down."""
    ends = [end * out_width // sum(dims) for end in itertools.accumulate(dims)]
    return tuple(b - a for a, b in itertools.pairwise([0, *ends]))


def share_columns(
    tower_dims: Sequence[Sequence[int]],
    tower_rows: Sequence[Sequence[int]],
    tower_importance: Sequence[Sequence[float]],
    compression: float,
    unit: int = 1,
) -> list[tuple[int, ...]]:
    """Share the columns of all towers out among their features by importance, as many in all as by even shares.

    A feature gets columns in proportion to the square root of its importance, which is best if its k-th direction is
    worth 1/k^2 of it, by Webster's method; at least one, and at most its dim, or one fewer than its table has rows:
    the embeddings of n rows differ in n - 1 directions, and what they have in common needs no column. (Bags of several
    ids, or of none, may have one direction more, which is lost.) Columns that nobody can use any more are given beyond
    that, up to the dims and then, where compression is below 1, beyond them.

    Parameters
    ----------
    tower_dims, tower_rows, tower_importance : sequence of sequence
        Embedding dim, rows of the table, and importance (of any one unit) of every tower's features. Importance below
        a thousandth of the greatest counts as that; where none is positive, all are alike.
    compression : float
        ``D_t / C_t`` to aim at, in the mean of the towers.
    unit : int
        Every tower gets a multiple of this.

    Returns
    -------
    list of tuple of int
        Columns of every tower's features. Some are 0 where there are too few.

    Raises
    ------
    InputError
        For a bad compression, or importances that are no numbers.
    """
    if not (compression > 0 and math.isfinite(compression)):
        raise InputError(f"compression must be a positive number, not {compression:g}")
    needs, dims = _needs(tower_importance), list(itertools.chain(*tower_dims))
    useful = [min(dim, rows - 1) for dim, rows in zip(dims, itertools.chain(*tower_rows), strict=True)]
    total = sum(tower_width(dims, compression, unit) for dims in tower_dims)
    columns = _apportion(total, needs, [useful, dims])

    counts = [len(dims) for dims in tower_dims]
    most = [max(1, sum(dims) // unit) for dims in tower_dims]
    least = [min(math.ceil(count / unit), limit) for count, limit in zip(counts, most, strict=True)]
    units = _apportion(total // unit, [sum(part) for part in _cut(columns, counts)], [most], least)
    parts = zip(units, *(_cut(values, counts) for values in (needs, useful, dims)), strict=True)
    return [tuple(_apportion(n * unit, need, [use, own])) for n, need, use, own in parts]


def _needs(tower_importance: Sequence[Sequence[float]]) -> list[float]:
    every = list(itertools.chain(*tower_importance))
    if not all(map(math.isfinite, every)):
        raise InputError("importances of features must be finite numbers")
    least = max(every) / 1000
    return [math.sqrt(max(value, least)) for value in every] if least > 0 else [1.0] * len(every)


def _cut(values: Sequence[_Number], counts: Sequence[int]) -> list[Sequence[_Number]]:
    """The values of every tower, of those of all features."""
    return [values[end - count : end] for count, end in zip(counts, itertools.accumulate(counts), strict=True)]


def _apportion(
    seats: int, needs: Sequence[float], limits: Sequence[Sequence[float]], least: Sequence[int] | None = None
) -> list[int]:
    """Deal `seats` out by Webster's method: first the `least`, or one each, then each to the greatest need per seat.

    With too few seats for the least there is one each, and with too few for that none. Whoever reaches a limit gets no
    more until all have reached theirs; then the next limits count, at last none.
    """
    starts = [least or [1] * len(needs), [1] * len(needs), [0] * len(needs)]
    dealt = list(next(start for start in starts if sum(start) <= seats))
    left = seats - sum(dealt)
    for most in [*limits, [math.inf] * len(needs)]:
        queue = [(-need / (2 * dealt[i] + 1), i) for i, need in enumerate(needs) if dealt[i] < most[i]]
        heapq.heapify(queue)
        while queue and left:
            _, i = heapq.heappop(queue)
            dealt[i], left = dealt[i] + 1, left - 1
            if dealt[i] < most[i]:
                heapq.heappush(queue, (-needs[i] / (2 * dealt[i] + 1), i))
    return dealt
