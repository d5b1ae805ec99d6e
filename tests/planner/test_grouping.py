"""Towers of alike features, within limits."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dmt_kernels.planner.clustering as clustering_module
from dmt_kernels import _C
from dmt_kernels.planner import alignment, group_features, load_affinity, mean_cosine, mutual_information, tower_loads
from dmt_kernels.planner.annealing import anneal
from dmt_kernels.planner.assignment import assign
from dmt_kernels.planner.centres import costs, means
from dmt_kernels.planner.excess import smallest_excess
from dmt_kernels.planner.program import GAP
from dmt_kernels.spec import InputError, Table
from dmt_kernels.train.partition_report import remarks


def _tables(rows: list[int]) -> list[Table]:
    return [Table(f"t{i}", count, 4, (f"f{i}",)) for i, count in enumerate(rows)]


def _planted(groups: list[int]) -> np.ndarray:
    group = np.array(groups)
    affinity = np.where(group[:, None] == group, 0.4, 0.02)
    np.fill_diagonal(affinity, 1)
    return affinity


def _fits(loads, towers: np.ndarray, count: int) -> bool:
    return all(load.excess(towers, count) <= 1e-6 for load in loads)


def _spread(points: np.ndarray, sizes: np.ndarray, count: int, towers: np.ndarray) -> float:
    """Over features, the squared distance to the centre of their tower."""
    centres = means(points, sizes, towers, np.zeros((count, points.shape[1])))
    return float(costs(points, sizes, centres)[np.arange(len(points)), towers].sum())


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(1, 60), min_size=3, max_size=7), towers=st.integers(2, 3), seed=st.integers(0, 99))
def test_assignment_and_excess_are_those_of_exhaustive_search(rows: list[int], towers: int, seed: int) -> None:
    tables, allowed = _tables(rows), np.ones((len(rows), towers), bool)
    cost = np.random.default_rng(seed).random((len(rows), towers))
    loads = tower_loads(tables, towers, slack=0.25)
    every = [np.array(place) for place in itertools.product(range(towers), repeat=len(rows))]
    least = min(sum(load.excess(place, towers) for load in loads) for place in every)
    excess, bound = smallest_excess(loads, allowed)
    assert bound <= least + 1e-6
    assert excess.sum() == pytest.approx(least, rel=0.01, abs=1e-5)
    assert bound == pytest.approx(least, rel=0.01, abs=1e-5)
    loads = [load.widened(part + 1e-6) for load, part in zip(loads, excess, strict=True)]
    found = assign(cost, loads, allowed)
    best = min(cost[np.arange(len(rows)), place].sum() for place in every if _fits(loads, place, towers))
    assert found is not None and _fits(loads, found.towers, towers)
    assert found.bound <= best + 1e-6
    assert best - 1e-6 <= found.cost <= best * (1 + GAP) + 1e-3


def test_excess_of_unlike_loads_is_proven() -> None:
    rng = np.random.default_rng(0)
    tables, allowed = _tables([int(x) for x in np.geomspace(24, 8000, 26)]), np.ones((26, 6), bool)
    ids = {f"f{i}": 1.75 for i in rng.choice(26, 3, replace=False)}
    excess, bound = smallest_excess(tower_loads(tables, 6, ids), allowed)
    assert 0 < excess.sum() <= bound * (1 + GAP)


def test_one_load_alone_can_be_kept_within_its_limits() -> None:
    loads = tower_loads(_tables([1] * 6), 2)[:1]
    excess, bound = smallest_excess(loads, np.ones((6, 2), bool))
    assert excess == pytest.approx([0], abs=1e-6) and bound == pytest.approx(0, abs=1e-6)
    pinned = np.ones((6, 2), bool)
    pinned[:4, 1] = False
    excess, bound = smallest_excess(loads, pinned)
    assert excess == pytest.approx([bound]) and bound == pytest.approx(loads[0].excess(np.array([0] * 4 + [1] * 2), 2))


def test_coherent_finds_planted_groups_and_diverse_spreads_them() -> None:
    groups = [0, 1, 2, 0, 1, 2, 0, 1, 2]
    tables, affinity = _tables([10] * 9), _planted(groups)
    coherent = group_features(tables, 3, "coherent", affinity=affinity).table_towers
    diverse = group_features(tables, 3, "diverse", affinity=affinity).table_towers
    assert len(set(zip(groups, coherent.tolist(), strict=True))) == 3
    assert len(set(zip(groups, diverse.tolist(), strict=True))) == 9


@pytest.mark.parametrize("strategy", ["coherent", "diverse", "load"])
def test_without_limits_a_tower_has_at_least_a_feature(strategy: str) -> None:
    tables = _tables([10 * (i + 1) for i in range(6)])
    grouping = group_features(tables, 2, strategy, affinity=_planted([0, 0, 0, 0, 0, 1]), slack=np.inf)
    assert all(grouping.partition.towers)
    if strategy == "coherent":
        assert sorted(map(len, grouping.partition.towers)) == [1, 5]


def test_shared_tables_stay_together_and_pins_hold() -> None:
    tables = [Table("a", 9, 4, ("a1", "a2")), *_tables([9] * 4)]
    grouping = group_features(tables, 3, affinity=_planted([0, 1, 0, 1, 2, 2]), pins={"a2": 2, "f3": 0})
    grouping.partition.check(tables)
    assert "a1" in grouping.partition.towers[2] and "f3" in grouping.partition.towers[0]


def test_a_table_that_breaks_the_slack_is_named_and_the_others_are_balanced() -> None:
    tables = _tables([1000, 30, 30, 30, 30, 30])
    grouping = group_features(tables, 3, affinity=_planted([0, 0, 1, 1, 2, 2]))
    sizes = next(load for load in grouping.loads if load.name == "bytes")
    assert sizes.oversized == (0,)
    assert grouping.clustering is not None
    assert grouping.clustering.excess.sum() == pytest.approx(grouping.clustering.excess_bound, abs=0.01)
    [line] = [line for line in remarks(grouping, tables) if "alone" in line]
    assert line.startswith("bytes: ") and "'t0' by 137%" in line  # 1000 rows of 1.1 times 1150 / 3


def test_a_table_is_not_too_large_for_what_larger_ones_leave() -> None:
    tables = _tables([1000, 60, 2, 2, 2, 2])
    grouping = group_features(tables, 6, affinity=_planted([0, 0, 1, 1, 2, 2]))
    sizes = next(load for load in grouping.loads if load.name == "bytes")
    assert sizes.oversized == (0, 1)
    [line] = [line for line in remarks(grouping, tables) if "alone" in line]
    assert "'t0'" in line and "'t1'" not in line  # a third of the mean


def test_excess_of_flops_is_called_one_of_widths() -> None:
    tables = _tables([9] * 8)
    grouping = group_features(tables, 2, affinity=_planted([0] * 4 + [1] * 4), pins={f"f{i}": i // 6 for i in range(8)})
    said = remarks(grouping, tables)
    assert any("flops: the slack is exceeded by 45.12% of the mean width" in line for line in said)  # 6/4 - sqrt(1.1)
    assert any("bytes: the slack is exceeded by 40.00% of the mean" in line for line in said)


def test_a_large_table_leaves_loads_to_be_balanced() -> None:
    grouping = group_features(_tables([5000, 3000, *[10] * 14]), 4, "load")
    assert sorted(map(len, grouping.partition.towers)) == [3, 3, 5, 5]  # by bytes alone 1, 1, 7, 7


def test_a_solver_that_finds_nothing_is_asked_once_more_only(monkeypatch) -> None:
    monkeypatch.setattr(clustering_module, "assign", lambda *given, **options: None)
    with pytest.raises(InputError, match="found in 7 seconds"):
        group_features(_tables([9] * 4), 2, affinity=_planted([0, 0, 1, 1]), seconds=7)


@pytest.mark.parametrize("strategy", ["strided", "random", "load"])
def test_the_rules_need_no_affinity(strategy: str) -> None:
    tables = _tables([40, 10, 10, 10, 10])
    grouping = group_features(tables, 2, strategy)
    grouping.partition.check(tables)
    assert grouping.clustering is None


@pytest.mark.parametrize("strategy", ["strided", "random", "load"])
def test_the_rules_heed_pins_and_tell_of_limits(strategy: str) -> None:
    tables = _tables([40, 10, 10, 10, 10, 10])
    grouping = group_features(tables, 3, strategy, pins={"f0": 2, "f5": 2})
    grouping.partition.check(tables)
    assert grouping.table_towers[[0, 5]].tolist() == [2, 2]
    assert set(grouping.table_towers.tolist()) == {0, 1, 2}
    assert any(line.startswith("bytes: outside the slack") for line in remarks(grouping, tables))


@pytest.mark.parametrize(
    "slack", [0.4, {"features": np.inf, "bytes": 0.4}], ids=["all limits", "any number of features"]
)
def test_annealing_keeps_limits_and_wins(slack: Any) -> None:
    rng = np.random.default_rng(0)
    tables = _tables(rng.integers(10, 60, 54).tolist())
    loads, allowed = tower_loads(tables, 18, slack=slack), np.ones((54, 18), bool)
    allowed[5] = np.arange(18) == 7
    points, sizes = rng.standard_normal((54, 3)), np.ones(54)
    before = assign(rng.random((54, 18)), loads, allowed, gap=0.5)
    assert before is not None
    after = anneal(points, sizes, loads, allowed, before.towers, rng=rng, seconds=3)
    assert _fits(loads, after, 18)
    assert after[5] == 7

    spread = partial(_spread, points, sizes, 18)
    assert spread(after) < 0.8 * spread(before.towers)


@pytest.mark.parametrize("seed", range(2))
def test_annealing_ends_at_the_best_towers_of_exhaustive_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables, allowed = _tables(rng.integers(10, 60, 8).tolist()), np.ones((8, 3), bool)
    allowed[2] = np.arange(3) == 1
    loads, points = tower_loads(tables, 3, slack=0.3), rng.standard_normal((8, 3))
    sizes = rng.integers(1, 3, 8)
    before = assign(rng.random((8, 3)), loads, allowed)
    assert before is not None
    after = anneal(points, sizes, loads, allowed, before.towers, rng=rng, seconds=1)
    spread = partial(_spread, points, sizes, 3)
    every = (np.array(place) for place in itertools.product(range(3), repeat=8) if place[2] == 1)
    best = min(spread(place) for place in every if _fits(loads, place, 3))
    assert _fits(loads, after, 3) and after[2] == 1
    assert spread(after) == pytest.approx(best) and spread(before.towers) > best * 1.01


def test_annealing_cools_by_the_clock_where_steps_are_too_many() -> None:
    rng = np.random.default_rng(0)
    loads, allowed = tower_loads(_tables([10] * 300), 60), np.ones((300, 60), bool)
    towers, points = np.arange(300) % 60, rng.standard_normal((300, 8))
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        after = anneal(points, np.ones(300), loads, allowed, towers, rng=rng, seconds=0.5)
        torch.set_num_threads(before)
        assert _spread(points, np.ones(300), 60, after) < 0.7 * _spread(points, np.ones(300), 60, towers)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sizes": np.ones(3)}, "shape of sizes"),
        ({"allowed": np.eye(4, 2, dtype=bool)}, "table 2 is where it may not be"),
        ({"towers": np.array([0, 1, 0, 2])}, "table 3 is where it may not be"),
        ({"points": np.full((4, 1), 1e20)}, "points are not all numbers below 1e9"),
        ({"weights": np.full((1, 4), np.nan)}, "weights are not all numbers"),
        ({"weights": np.ones((0, 4)), "lows": np.ones(0), "highs": np.ones(0)}, "no loads"),
    ],
)
def test_annealing_refuses_what_it_would_break_on(changed: dict[str, np.ndarray], message: str) -> None:
    given = {"points": np.ones((4, 1)), "sizes": np.ones(4), "weights": np.ones((1, 4)), "lows": np.zeros(1)}
    given |= {"highs": np.full(1, 9.0), "allowed": np.ones((4, 2), bool), "towers": np.array([0, 1, 0, 1])}
    with pytest.raises(ValueError, match=message):
        _C.anneal(**given | changed, steps=10, seconds=1.0, seed=0)


def test_many_tables_start_from_a_draft_that_is_proven_where_they_are_alike() -> None:
    groups = np.arange(160) % 40
    found = group_features(_tables([10] * 160), 40, affinity=_planted(groups.tolist())).clustering
    assert found is not None and found.assignment.gap <= GAP
    assert len(set(zip(groups.tolist(), found.assignment.towers.tolist(), strict=True))) == 40


def test_affinities_tell_dependent_features_apart() -> None:
    rng = np.random.default_rng(0)
    topic = rng.integers(0, 6, (2, 3000))
    noise = rng.integers(0, 8, (4, 3000))
    ids = topic[[0, 1, 0, 1]] + 6 * noise
    rows = torch.from_numpy(rng.standard_normal((4, 6, 8)))
    pooled = torch.cat([rows[f][topic[f % 2]] for f in range(4)], dim=1)
    for affinity in (mutual_information(ids), alignment(pooled, [8] * 4)):
        assert affinity[0, 2] > 3 * affinity[0, 1]
        assert affinity[1, 3] > 3 * affinity[2, 3]
        assert (affinity == affinity.T).all()


def test_the_mean_cosine_is_that_of_every_row() -> None:
    pooled = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 12)))
    affinity = mean_cosine(pooled, [4, 4, 4])
    for f, g in itertools.product(range(3), repeat=2):
        cosines = torch.cosine_similarity(pooled[:, 4 * f : 4 * f + 4], pooled[:, 4 * g : 4 * g + 4])
        assert affinity[f, g] == pytest.approx(float(cosines.abs().mean()))


def test_bad_input_names_the_culprit(tmp_path) -> None:
    tables, path = _tables([5] * 3), tmp_path / "a.csv"
    path.write_text("1,0\n0,1\n")
    bad = {
        "'magic' is unknown": lambda: group_features(tables, 2, "magic"),
        "needs an affinity": lambda: group_features(tables, 2),
        "3 features": lambda: load_affinity(path, 3),
        "'f9' is pinned": lambda: group_features(tables, 2, pins={"f9": 0}),
        "towers are 0 to 1": lambda: group_features(tables, 2, pins={"f0": 2}),
        "pins leave 0 tables for 1 towers": lambda: group_features(
            tables, 2, "strided", pins={"f0": 0, "f1": 0, "f2": 0}
        ),
        "slack of 'weight'": lambda: tower_loads(tables, 2, slack={"weight": 0.1}),
        "not at least 0": lambda: tower_loads(tables, 2, slack=-1.0),
    }
    for sentence, call in bad.items():
        with pytest.raises(InputError, match=sentence):
            call()
