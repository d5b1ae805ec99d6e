"""How the columns that cross hosts are shared out among features."""

import heapq
import itertools
import math
from collections.abc import Sequence

from dmt_kernels.spec import InputError


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
    """Share the columns of all towers out among their features by importance, as many in all as without.

    A feature gets columns in proportion to the square root of its importance, which is how much it moves the logit if
    the loss is quadratic, by Webster's method; at least one, and at most its dim, or one fewer than its table has rows:
    embeddings of n rows differ in n - 1 directions, and what they have in common needs no column. Columns that nobody
    can use any more are given beyond that, up to the dims and then, where compression is below 1, beyond them.

    Parameters
    ----------
    tower_dims, tower_rows, tower_importance : sequence of sequence
        Embedding dim, rows of the table, and importance (of any one unit) of every tower's features. Importance below
        a thousandth of the greatest counts as that.
    compression : float
        Sum of all dims over that of all columns.
    unit : int
        Every tower gets a multiple of this.

    Returns
    -------
    list of tuple of int
        Columns of every tower's features. Some are 0 where a tower has fewer columns than features.

    Raises
    ------
    InputError
        For a bad compression, or importances that are no numbers, or all 0 or less.
    """
    if not (compression > 0 and math.isfinite(compression)):
        raise InputError(f"compression must be a positive number, not {compression:g}")
    needs = _needs(tower_importance)
    dims = list(itertools.chain(*tower_dims))
    useful = [max(1, min(dim, rows - 1)) for dim, rows in zip(dims, itertools.chain(*tower_rows), strict=True)]
    total = max(math.floor(sum(dims) / compression), unit * len(tower_dims))
    columns = _apportion(total, list(itertools.chain(*needs)), [useful, dims])

    start, shared = 0, []
    sums = [sum(part) for part in _like(columns, tower_dims)]
    most = [max(1, sum(dims) // unit) for dims in tower_dims]
    for units, part, dims_here in zip(_apportion(total // unit, sums, [most]), needs, tower_dims, strict=True):
        end = start + len(part)
        shared.append(tuple(_apportion(units * unit, part, [useful[start:end], list(dims_here)])))
        start = end
    return shared


def _needs(tower_importance: Sequence[Sequence[float]]) -> list[list[float]]:
    every = list(itertools.chain(*tower_importance))
    if not all(map(math.isfinite, every)) or max(every) <= 0:
        raise InputError("importances of features must be finite numbers, some of them positive")
    least = max(every) / 1000
    return [[math.sqrt(max(value, least)) for value in tower] for tower in tower_importance]


def _like(values: Sequence[int], towers: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    ends = list(itertools.accumulate(map(len, towers)))
    return [values[a:b] for a, b in itertools.pairwise([0, *ends])]


def _apportion(seats: int, needs: Sequence[float], limits: Sequence[Sequence[float]]) -> list[int]:
    """Deal `seats` out by Webster's method: one each, if there are as many, then each to the greatest need per seat.

    Whoever reaches a limit gets no more until all have reached theirs; then the next limits count, at last none.
    """
    dealt = [int(seats >= len(needs))] * len(needs)
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
