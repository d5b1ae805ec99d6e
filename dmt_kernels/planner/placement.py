"""Shards of a tower's tables on its members."""

from collections.abc import Mapping, Sequence

from dmt_kernels.spec import InputError, Partition, Plan, Shard, Table, Topology, tables_by_feature
from dmt_kernels.spec.shards import column_shards, replicas, row_shards, whole

SPLITS = ("whole", "columns", "rows", "replicated")


def place(
    tables: Sequence[Table],
    partition: Partition,
    topology: Topology,
    splits: Mapping[str, str] | None = None,
) -> Plan:
    """Place every table inside its tower.

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

    Returns
    -------
    Plan
        Pieces go to members in descending size, each to the member with the fewest bytes (longest processing time).

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
    shards: list[Shard] = []
    for t, tower in enumerate(partition.towers):
        shards += _place_tower(list(dict.fromkeys(owners[f] for f in tower)), t, topology.members, splits)
    return Plan(topology, tuple(tables), partition, tuple(shards))


def _place_tower(tables: Sequence[Table], tower: int, members: int, splits: Mapping[str, str]) -> list[Shard]:
    everyone = list(range(members))
    shards: list[Shard] = []
    loads = [0] * members
    pieces: dict[Table, int] = {}
    for table in tables:
        split = splits.get(table.name)
        if split == "replicated":
            shards += replicas(table, tower, everyone)
        elif split == "rows":
            shards += row_shards(table, tower, everyone[: table.rows])
        elif split == "columns":
            shards += column_shards(table, tower, everyone[: table.dim])
        else:
            pieces[table] = 1
    for shard in shards:
        loads[shard.member] += shard.rows * shard.dim
    _employ(pieces, members - sum(load > 0 for load in loads), splits)
    placed: dict[Table, list[int]] = {}
    for table in sorted(pieces, key=lambda table: -table.rows * table.dim // pieces[table]):
        placed[table] = sorted(everyone, key=lambda member: (loads[member], member))[: pieces[table]]
        for shard in _cut(table, tower, placed[table]):
            loads[shard.member] += shard.rows * shard.dim
    _line_up(placed)
    for table in placed:
        shards += _cut(table, tower, placed[table])
    return shards


def _cut(table: Table, tower: int, members: Sequence[int]) -> list[Shard]:
    return column_shards(table, tower, members) if len(members) > 1 else [whole(table, tower, members[0])]


def _line_up(placed: dict[Table, list[int]]) -> None:
    """Let whole tables of one size change places: neighbours on one member have their columns side by side."""
    alike: dict[tuple[int, int, int], list[Table]] = {}
    for table, members in placed.items():
        if len(members) == 1:
            alike.setdefault((table.rows, table.dim, len(table.features)), []).append(table)
    for tables in alike.values():
        for table, member in zip(tables, sorted(placed[table][0] for table in tables), strict=True):
            placed[table] = [member]


def _employ(pieces: dict[Table, int], idle: int, splits: Mapping[str, str]) -> None:
    """Cut the tables with the largest pieces until there is a piece for every idle member."""
    while sum(pieces.values()) < idle:
        cuttable = [table for table, count in pieces.items() if count < table.dim and splits.get(table.name) != "whole"]
        if not cuttable:
            return
        pieces[max(cuttable, key=lambda table: table.rows * table.dim / pieces[table])] += 1
