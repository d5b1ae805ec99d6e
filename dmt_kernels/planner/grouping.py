"""Towers chosen by what features have to do with each other, or by a rule, with the loads that come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dmt_kernels.planner.affinity import check_affinity
from dmt_kernels.planner.clustering import Clustering, cluster
from dmt_kernels.planner.layout import distances, lay_out
from dmt_kernels.planner.loads import DEFAULT_SLACK, Load, tower_loads
from dmt_kernels.planner.packing import pack_free
from dmt_kernels.planner.partitioner import check_towers
from dmt_kernels.planner.program import DEFAULT_SECONDS
from dmt_kernels.spec import InputError, Partition, Table, tables_by_feature

GROUPINGS = ("coherent", "diverse", "strided", "random", "load")
BY_AFFINITY = ("coherent", "diverse")
DIMS = 8


@dataclass(frozen=True)
class Grouping:
    """Towers, and what was found out on the way.

    Parameters
    ----------
    partition : Partition
        The towers.
    table_towers : ndarray
        ``[N]`` tower of every table.
    loads : list of Load
        Loads and their limits.
    points : ndarray or None
        ``[F, DIMS]`` the layout, features in the order of the tables; None where no affinity was asked for.
    stress : float or None
        How far the layout's distances are from those wanted (Kruskal's stress-1).
    clustering : Clustering or None
        Cost, gap and excess of ``coherent`` and ``diverse``.
    """

    partition: Partition
    table_towers: np.ndarray
    loads: list[Load]
    points: np.ndarray | None = None
    stress: float | None = None
    clustering: Clustering | None = None


def group_features(
    tables: Sequence[Table],
    towers: int,
    strategy: str = "coherent",
    *,
    affinity: np.ndarray | None = None,
    lookups: Mapping[str, float] | None = None,
    slack: float | Mapping[str, float] = DEFAULT_SLACK,
    pins: Mapping[str, int] | None = None,
    seed: int = 0,
    seconds: float = DEFAULT_SECONDS,
) -> Grouping:
    """Choose the towers of features. Features that share a table stay together.

    Parameters
    ----------
    tables : sequence of Table
        All tables.
    towers : int
        ``T``.
    strategy : {"coherent", "diverse", "strided", "random", "load"}
        Alike features together, or apart; dealt out by turns, in the order of the tables or at random; or so that loads
        are as equal as longest processing time with local search makes them.
    affinity : ndarray, optional
        ``[F, F]``, features in the order of the tables; ``coherent`` and ``diverse`` need it.
    lookups, slack
        See :func:`tower_loads`. The limits bind ``coherent`` and ``diverse``; the others are rules that keep none of
        them (``load`` counts a table above them as just that large), and :attr:`Grouping.loads` tells by how much a
        load is outside.
    pins : mapping of str to int, optional
        Features that have to go to a tower, whatever the strategy.
    seed : int
        Of what is random.
    seconds : float
        For the solver's proof, of one assignment.

    Raises
    ------
    InputError
        For an unknown strategy, load, feature or tower, too many towers, an affinity that is missing or no symmetric
        matrix, or where the solver finds no towers in that time.
    """
    if not seconds > 0:
        raise InputError(f"{seconds:g} seconds are no time to solve in")
    loads, allowed = check_grouping(tables, towers, strategy, lookups, slack, pins)
    if strategy not in BY_AFFINITY:
        place = _deal(strategy, loads, allowed, seed)
        return Grouping(_partition(tables, place, towers), place, loads)
    features = sum(len(table.features) for table in tables)
    if affinity is None:
        raise InputError(f"strategy {strategy!r} needs an affinity of features")
    affinity = np.asarray(affinity)
    check_affinity(affinity, features)
    points, stress = lay_out(distances(affinity, strategy), min(DIMS, max(1, features - 1)))
    table_of = np.repeat(np.arange(len(tables)), [len(table.features) for table in tables])
    sizes = np.bincount(table_of, minlength=len(tables))
    means = np.stack([np.bincount(table_of, column, len(tables)) / sizes for column in points.T], axis=1)
    clustering = cluster(means, sizes, loads, allowed, seed=seed, seconds=seconds)
    place = clustering.assignment.towers
    return Grouping(_partition(tables, place, towers), place, loads, points, stress, clustering)


def check_grouping(
    tables: Sequence[Table],
    towers: int,
    strategy: str,
    lookups: Mapping[str, float] | None = None,
    slack: float | Mapping[str, float] = DEFAULT_SLACK,
    pins: Mapping[str, int] | None = None,
) -> tuple[list[Load], np.ndarray]:
    """Check what :func:`group_features` is told; return loads, and where tables may go, ``[N, T]``."""
    if strategy not in GROUPINGS:
        raise InputError(f"partition strategy {strategy!r} is unknown; choose one of {', '.join(GROUPINGS)}")
    check_towers(tables, towers)
    return tower_loads(tables, towers, lookups, slack), _allowed(tables, towers, pins or {})


def _allowed(tables: Sequence[Table], towers: int, pins: Mapping[str, int]) -> np.ndarray:
    """``[N, T]`` bool: where tables may go."""
    allowed = np.ones((len(tables), towers), bool)
    owners, index = tables_by_feature(tables), {table.name: i for i, table in enumerate(tables)}
    for feature, tower in pins.items():
        if feature not in owners:
            raise InputError(f"feature {feature!r} is pinned, and no table has it")
        if not 0 <= tower < towers:
            raise InputError(f"feature {feature!r} is pinned to tower {tower}, and towers are 0 to {towers - 1}")
        row = allowed[index[owners[feature].name]]
        if not row[tower]:
            raise InputError(f"features of table {owners[feature].name!r} are pinned to two towers")
        row[np.arange(towers) != tower] = False
    fixed = allowed.sum(1) == 1
    bare = towers - int(allowed[fixed].any(0).sum())
    if towers > 1 and bare > (~fixed).sum():
        raise InputError(f"pins leave {(~fixed).sum()} tables for {bare} towers without a feature")
    return allowed


def _deal(strategy: str, loads: Sequence[Load], allowed: np.ndarray, seed: int) -> np.ndarray:
    """``[N]`` towers by a rule; pinned tables are in theirs already."""
    if strategy == "load":
        return pack_free(np.stack([load.counted / (load.mean or 1) for load in loads]), allowed)
    place, free = allowed.argmax(1), allowed.sum(1) > 1
    held = np.bincount(place[~free], minlength=allowed.shape[1])
    turns = []
    for _ in range(int(free.sum())):
        turns.append(int(held.argmin()))  # by turns, pinned towers later
        held[turns[-1]] += 1
    place[free] = np.random.default_rng(seed).permutation(turns) if strategy == "random" else turns
    return place


def _partition(tables: Sequence[Table], place: np.ndarray, towers: int) -> Partition:
    return Partition(
        tuple(tuple(f for i in np.flatnonzero(place == t).tolist() for f in tables[i].features) for t in range(towers))
    )
