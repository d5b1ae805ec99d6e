"""Shards of a tower's tables on its members."""

from collections.abc import Mapping, Sequence

import numpy as np

from dmt_kernels.planner.packing import pack
from dmt_kernels.spec import InputError, Partition, Plan, Shard, Table, Topology, tables_by_feature
from dmt_kernels.spec.shards import column_shards, replicas, row_shards, whole

SPLITS = ("whole", "columns", "rows", "replicated")


def place(
    tables: Sequence[Table],
    partition: Partition,
    topology: Topology,
    splits: Mapping[str, str] | None = None,
    lookups: Mapping[str, float] | None = None,
) -> Plan:
    """Place every table inside its tower, so that members are alike in bytes and in what they look up.

    Tables without an entry in ``splits`` stay whole, unless that leaves members idle: then the largest of them
    are split by columns until every member has work or no column is left to split.

    Parameters
    ----------
    tables : sequence of Table
        All tables.
    partition : Partition
        Features of every tower.
    topology : Topology
        Towers and members.
    splits : mapping of str to str, optional
        Table name to ``"whole"``, ``"columns"``, ``"rows"`` (both over all members, as far as they go round) or
        ``"replicated"``.
    lookups : mapping of str to float, optional
        Expected ids per sample of every feature; 1 where not given.

    Returns
    -------
    Plan
        Pieces lie where :func:`~dmt_kernels.planner.packing.pack` puts them.

    Raises
    ------
    InputError
        For an unknown table or split, or a partition that does not fit.
    """
    splits = dict(splits or {})
    names = {table.name for table in tables}
    for name, split in splits.items():
        if name not in names:
            raise InputError(f"a split is given for table {name!r}, which does not exist")
        if split not in SPLITS:
            raise InputError(f"split {split!r} of table {name!r} is unknown; choose one of {', '.join(SPLITS)}")
    partition.check(tables)
    owners = tables_by_feature(tables)
    ids = {table: sum((lookups or {}).get(f, 1.0) for f in table.features) for table in tables}
    shards: list[Shard] = []
    for t, tower in enumerate(partition.towers):
        shards += _place_tower({owners[f]: ids[owners[f]] for f in tower}, t, topology.members, splits)
    return Plan(topology, tuple(tables), partition, tuple(shards))


def shard_weights(shard: Shard, ids: float) -> tuple[float, float]:
    """Values that a shard keeps, and that it reads per sample, with ``ids`` in the bags of all its table's features."""
    return shard.rows * shard.dim, ids * shard.dim * shard.rows / shard.table.rows


def _place_tower(ids: Mapping[Table, float], tower: int, members: int, splits: Mapping[str, str]) -> list[Shard]:
    everyone = list(range(members))
    shards: list[Shard] = []
    pieces: dict[Table, int] = {}
    for table in ids:
        split = splits.get(table.name)
        if split == "replicated":
            shards += replicas(table, tower, everyone)
        elif split == "rows":
            shards += row_shards(table, tower, everyone[: table.rows])
        elif split == "columns":
            shards += column_shards(table, tower, everyone[: table.dim])
        else:
            pieces[table] = 1
    idle = [member for member in everyone if all(shard.member != member for shard in shards)]
    if len(pieces) < len(idle):
        _cut_for(pieces, len(idle), splits)
        for table, count in pieces.items():
            shards += _cut(table, tower, idle[:count])
            idle = idle[count:]
        return shards
    held = np.zeros((2, members))
    for shard in shards:
        held[:, shard.member] += shard_weights(shard, ids[shard.table])
    weights = np.array([shard_weights(whole(table, tower, 0), ids[table]) for table in pieces]).T.reshape(2, -1)
    mean = (held.sum(1) + weights.sum(1)) / members
    mean[mean == 0] = 1  # bags that are always empty
    placed = pack(weights / mean[:, None], members, held / mean[:, None])
    _line_up(weights, placed)
    return shards + [whole(table, tower, member) for table, member in zip(pieces, placed.tolist(), strict=True)]


def _cut(table: Table, tower: int, members: Sequence[int]) -> list[Shard]:
    return column_shards(table, tower, members) if len(members) > 1 else [whole(table, tower, members[0])]


def _line_up(weights: np.ndarray, placed: np.ndarray) -> None:
    """Let tables of one weight change places: neighbours on one member have their columns side by side."""
    alike = np.unique(weights, axis=1, return_inverse=True)[1].reshape(-1)
    for kind in range(alike.max(initial=-1) + 1):
        placed[alike == kind] = np.sort(placed[alike == kind])


def _cut_for(pieces: dict[Table, int], idle: int, splits: Mapping[str, str]) -> None:
    """Cut the tables with the largest pieces until there is a piece for every idle member."""
    while sum(pieces.values()) < idle:
        cuttable = [table for table, count in pieces.items() if count < table.dim and splits.get(table.name) != "whole"]
        if not cuttable:
            return
        pieces[max(cuttable, key=lambda table: table.rows * table.dim / pieces[table])] += 1
