"""Towers of features."""

import itertools
from collections.abc import Sequence

from dmt_kernels.spec import InputError, Partition, Table

STRATEGIES = ("strided", "contiguous")


def partition_features(tables: Sequence[Table], towers: int, strategy: str = "strided") -> Partition:
    """Deal tables out to towers; features that share a table stay together.

    Parameters
    ----------
    tables : sequence of Table
        All tables.
    towers : int
        ``T``.
    strategy : {"strided", "contiguous"}
        Table ``i`` to tower ``i mod T``, or runs of neighbouring tables; both give every tower the floor or the
        ceiling of the mean number of tables.

    Returns
    -------
    Partition
        Every feature in one tower.

    Raises
    ------
    InputError
        For an unknown strategy, no towers, more of them than features, or more than tables.
    """
    check_towers(tables, towers)
    if strategy == "strided":
        dealt = [tables[t::towers] for t in range(towers)]
    elif strategy == "contiguous":
        cuts = [len(tables) * t // towers for t in range(towers + 1)]
        dealt = [tables[a:b] for a, b in itertools.pairwise(cuts)]
    else:
        raise InputError(f"partition strategy {strategy!r} is unknown; choose one of {', '.join(STRATEGIES)}")
    return Partition(tuple(tuple(f for table in tower for f in table.features) for tower in dealt))


def check_towers(tables: Sequence[Table], towers: int) -> None:
    """Refuse no towers, and more than can have a table each, with an `InputError`."""
    if towers < 1:
        raise InputError(f"{towers} towers; there is at least one")
    features = sum(len(table.features) for table in tables)
    if towers > features:
        raise InputError(f"{towers} towers are more than the {features} features")
    if towers > len(tables):
        raise InputError(f"{towers} towers are more than the {len(tables)} tables that the {features} features share")
