"""Which rank holds which piece of which table."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dmt_kernels.spec.errors import InputError
from dmt_kernels.spec.partition import Partition
from dmt_kernels.spec.tables import Table, tables_by_feature
from dmt_kernels.spec.topology import Topology


@dataclass(frozen=True)
class Shard:
    """Rows ``[row_start, row_stop)`` and columns ``[col_start, col_stop)`` of a table on one member.

    A whole table is the shard of all rows and columns; a replicated table has such a shard on every
    member of its tower, each with ``replicated`` set.
    """

    table: Table
    tower: int
    member: int
    row_start: int
    row_stop: int
    col_start: int
    col_stop: int
    replicated: bool = False

    @property
    def rows(self) -> int:
        """Rows of the shard."""
        return self.row_stop - self.row_start

    @property
    def dim(self) -> int:
        """Columns of the shard."""
        return self.col_stop - self.col_start

    @property
    def splits_rows(self) -> bool:
        """Whether the shard holds only some of the table's rows."""
        return self.rows < self.table.rows

    @property
    def splits_cols(self) -> bool:
        """Whether the shard holds only some of the table's columns."""
        return self.dim < self.table.dim

    @property
    def key(self) -> str:
        """Name of the piece, the same for every replica: where it lies in a checkpoint."""
        rows = f":rows{self.row_start}-{self.row_stop}" if self.splits_rows else ""
        cols = f":cols{self.col_start}-{self.col_stop}" if self.splits_cols else ""
        return f"{self.table.name}{rows}{cols}"


@dataclass(frozen=True)
class Plan:
    """The whole layout: topology, tables, towers of features, and shards of tables.

    Parameters
    ----------
    topology : Topology
        Towers and members.
    tables : tuple of Table
        All tables.
    partition : Partition
        Features of every tower.
    shards : tuple of Shard
        Every shard of every member.

    Raises
    ------
    InputError
        If the partition does not fit the tables or the topology, a shard is of another table, or the shards of a table
        do not cover it exactly once.
    """

    topology: Topology
    tables: tuple[Table, ...]
    partition: Partition
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        self.partition.check(self.tables)
        if len(self.partition.towers) != self.topology.towers:
            raise InputError(
                f"the partition has {len(self.partition.towers)} towers and the topology has {self.topology.towers}"
            )
        owners = tables_by_feature(self.tables)
        tower_of = {owners[f].name: t for t, tower in enumerate(self.partition.towers) for f in tower}
        tables = set(self.tables)
        for table in self._by_table:
            if table not in tables:
                raise InputError(f"a shard is of table {table.name!r}, which is none of the plan's")
        for table in self.tables:
            self._check_cover(table, self._by_table.get(table, []), tower_of[table.name])

    def _check_cover(self, table: Table, mine: Sequence[Shard], tower: int) -> None:
        if any(s.tower != tower or not 0 <= s.member < self.topology.members for s in mine):
            raise InputError(f"a shard of table {table.name!r} lies outside tower {tower}")
        if any(s.rows < 1 or s.dim < 1 for s in mine):
            raise InputError(f"a shard of table {table.name!r} is empty")
        if any(s.replicated for s in mine):
            members = sorted(s.member for s in mine)
            whole = all(s.replicated and not s.splits_rows and not s.splits_cols for s in mine)
            if not whole or members != list(range(self.topology.members)):
                raise InputError(f"table {table.name!r} is replicated but not whole on every member of tower {tower}")
            return
        if len({s.member for s in mine}) < len(mine):
            raise InputError(f"two shards of table {table.name!r} lie on one member of tower {tower}")
        if any(s.splits_rows and s.splits_cols for s in mine):
            raise InputError(f"table {table.name!r} is split by rows and by columns; choose one")
        pieces = sorted((s.row_start, s.row_stop) if s.splits_rows else (s.col_start, s.col_stop) for s in mine)
        extent = table.rows if any(s.splits_rows for s in mine) else table.dim
        starts, stops = [a for a, _ in pieces], [b for _, b in pieces]
        if not pieces or starts != [0, *stops[:-1]] or stops[-1] != extent:
            raise InputError(f"the shards of table {table.name!r} do not cover it exactly once")

    @cached_property
    def _by_table(self) -> dict[Table, list[Shard]]:
        by_table: dict[Table, list[Shard]] = {}
        for shard in self.shards:
            by_table.setdefault(shard.table, []).append(shard)
        return by_table

    @cached_property
    def feature_tables(self) -> dict[str, Table]:
        """Table of every feature."""
        return tables_by_feature(self.tables)

    def tower_dims(self, tower: int) -> tuple[int, ...]:
        """Embedding dims of a tower's features, in the order of the partition."""
        owners = self.feature_tables
        return tuple(owners[feature].dim for feature in self.partition.towers[tower])

    def member_shards(self, tower: int, member: int) -> tuple[Shard, ...]:
        """Shards on member ``(t, r)``, in the order of the plan."""
        return tuple(s for s in self.shards if (s.tower, s.member) == (tower, member))

    def table_shards(self, table: Table) -> tuple[Shard, ...]:
        """Shards of one table, by row, column, then member."""
        return tuple(sorted(self._by_table.get(table, []), key=lambda s: (s.row_start, s.col_start, s.member)))


def whole(table: Table, tower: int, member: int) -> Shard:
    """The shard that is the whole table."""
    return Shard(table, tower, member, 0, table.rows, 0, table.dim)


def column_shards(table: Table, tower: int, members: Sequence[int]) -> list[Shard]:
    """Split a table's columns as evenly as integers allow over members."""
    cuts = _cuts(table.dim, len(members))
    return [
        Shard(table, tower, m, 0, table.rows, a, b) for m, (a, b) in zip(members, itertools.pairwise(cuts), strict=True)
    ]


def row_shards(table: Table, tower: int, members: Sequence[int]) -> list[Shard]:
    """Split a table's rows as evenly as integers allow over members."""
    cuts = _cuts(table.rows, len(members))
    return [
        Shard(table, tower, m, a, b, 0, table.dim) for m, (a, b) in zip(members, itertools.pairwise(cuts), strict=True)
    ]


def replicas(table: Table, tower: int, members: Sequence[int]) -> list[Shard]:
    """A whole copy of a table on every member."""
    return [Shard(table, tower, m, 0, table.rows, 0, table.dim, replicated=True) for m in members]


def _cuts(extent: int, pieces: int) -> list[int]:
    return [extent * i // pieces for i in range(pieces + 1)]
