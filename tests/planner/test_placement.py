"""Towers of features and shards of tables."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmt_kernels.planner import SPLITS, partition_features, place
from dmt_kernels.spec import InputError, Partition, Plan, Shard, Table, Topology
from dmt_kernels.spec.shards import whole


def _tables(sizes: list[tuple[int, int]]) -> list[Table]:
    return [Table(f"t{i}", rows, dim, (f"f{i}",)) for i, (rows, dim) in enumerate(sizes)]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 16)), min_size=1, max_size=12),
    members=st.integers(1, 5),
    data=st.data(),
)
def test_every_layout_covers_every_table_once(sizes: list, members: int, data: st.DataObject) -> None:
    tables = _tables(sizes)
    towers = data.draw(st.integers(1, len(tables)))
    splits = data.draw(st.dictionaries(st.sampled_from([t.name for t in tables]), st.sampled_from(SPLITS)))
    plan = place(tables, partition_features(tables, towers), Topology(towers, members), splits)
    cells = {(t.name, r, c): 0 for t in tables for r in range(t.rows) for c in range(t.dim)}
    for shard in plan.shards:
        if shard.replicated and shard.member > 0:
            continue
        for row in range(shard.row_start, shard.row_stop):
            for col in range(shard.col_start, shard.col_stop):
                cells[shard.table.name, row, col] += 1
    assert set(cells.values()) == {1}


@given(
    dims=st.lists(st.integers(1, 16), min_size=1, max_size=6),
    members=st.integers(1, 6),
)
def test_members_are_idle_only_when_no_column_is_left(dims: list[int], members: int) -> None:
    tables = _tables([(10, dim) for dim in dims])
    plan = place(tables, partition_features(tables, 1), Topology(1, members))
    busy = {shard.member for shard in plan.shards}
    assert len(busy) == min(members, sum(dims))


def test_a_one_table_tower_keeps_every_member_busy() -> None:
    tables = _tables([(100, 8), (100, 8)])
    plan = place(tables, partition_features(tables, 2), Topology(2, 3))
    assert [s.key for s in plan.member_shards(0, 1)] == ["t0:cols2-5"]
    assert [s.dim for s in plan.shards if s.tower == 1] == [2, 3, 3]


def test_big_tables_are_spread_by_bytes() -> None:
    tables = _tables([(1000, 8), (10, 8), (990, 8), (10, 8)])
    plan = place(tables, partition_features(tables, 1), Topology(1, 2))
    loads = [sum(s.rows * s.dim for s in plan.member_shards(0, r)) for r in range(2)]
    assert loads == [8080, 8000]


def _plan_with(shard: Shard) -> Plan:
    """A plan of one table, and another shard."""
    plan = place(_tables([(5, 2)]), Partition((("f0",),)), Topology(1, 1))
    return dataclasses.replace(plan, shards=(*plan.shards, shard))


def test_members_are_alike_in_bytes_and_in_lookups() -> None:
    tables = _tables([(100, 8)] * 8)
    ids = {f"f{i}": 5.0 if i % 2 else 1.0 for i in range(8)}  # dealt by bytes alone, one has all
    plan = place(tables, partition_features(tables, 1), Topology(1, 2), lookups=ids)
    held = [[s.table.features[0] for s in plan.member_shards(0, r)] for r in range(2)]
    assert [len(features) for features in held] == [4, 4]
    assert [sum(ids[f] for f in features) for features in held] == [12, 12]


def test_what_is_split_by_hand_counts() -> None:
    tables = _tables([(3, 8), (10, 8), (1, 8)])
    plan = place(tables, partition_features(tables, 1), Topology(1, 2), {"t2": "rows", "t0": "replicated"})
    assert [s.member for s in plan.table_shards(tables[2])] == [0]
    assert [s.member for s in plan.table_shards(tables[1])] == [1]


@pytest.mark.parametrize("strategy", ["strided", "contiguous"])
def test_partitions_are_balanced_and_keep_shared_tables_whole(strategy: str) -> None:
    tables = [Table("a", 5, 2, ("a1", "a2")), *_tables([(5, 2)] * 4)]
    partition = partition_features(tables, 2, strategy)
    partition.check(tables)
    owners = [sorted({f[0] == "a" or f for f in tower}, key=str) for tower in partition.towers]
    assert sorted(len(tower) for tower in owners) == [2, 3]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: partition_features(_tables([(5, 2)] * 2), 3), "3 towers are more than the 2 features"),
        (lambda: partition_features(_tables([(5, 2)] * 2), 2, "magic"), "'magic' is unknown"),
        (lambda: Table("t", 5, 2, ()), "table 't' has no feature"),
        (lambda: Table("t", 0, 2, ("f",)), "0 rows"),
        (lambda: Topology(0, 2), "at least 1"),
        (lambda: Partition((("f0",),)).check(_tables([(5, 2)] * 2)), "feature 'f1' is in no tower"),
        (lambda: Partition((("f0", "f0"),)).check(_tables([(5, 2)])), "in tower 0 and in tower 0"),
        (lambda: Partition((("f0", "x"),)).check(_tables([(5, 2)])), "'x', which no table has"),
        (lambda: Partition((("f0",), ())).check(_tables([(5, 2)])), "tower 1 has no feature"),
        (
            lambda: Partition((("a",), ("b",))).check([Table("t", 5, 2, ("a", "b"))]),
            "'t' is shared by features of different towers",
        ),
        (
            lambda: place(_tables([(5, 2)]), Partition((("f0",),)), Topology(1, 1), {"t9": "rows"}),
            "table 't9', which does not exist",
        ),
        (
            lambda: place(_tables([(5, 2)]), Partition((("f0",),)), Topology(1, 1), {"t0": "diagonally"}),
            "'diagonally' of table 't0' is unknown",
        ),
        (lambda: place(_tables([(5, 2)]), Partition((("f0",),)), Topology(2, 1)), "1 towers and the topology has 2"),
        (lambda: _plan_with(whole(Table("stray", 5, 2, ("s",)), 0, 0)), "table 'stray', which is none of the plan's"),
        (lambda: _plan_with(whole(_tables([(5, 2)])[0], 0, 0)), "two shards of table 't0'"),
        (lambda: partition_features(_tables([(5, 2)]), 0), "0 towers"),
    ],
)
def test_bad_input_names_the_culprit(build, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        build()
