"""What the quality bench draws on: its statistics, the space of options, and the search in it."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from bench.quality.search import Search
from bench.quality.space import CHOICES, RANGES, draw_near, draw_trials, ranges
from bench.quality.statistics import Estimate, estimate, needs_more
from dmt_kernels.train.config import TrainConfig


def test_an_interval_by_hand():
    found = estimate([0.1, 0.2, 0.3])
    assert found.mean == pytest.approx(0.2)
    assert found.half_width == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-5)
    assert found.low == pytest.approx(0.2 - found.half_width)
    assert estimate([0.5]) == Estimate(0.5, math.inf, 1)
    assert estimate([]).count == 0


@pytest.mark.parametrize(
    ("count", "half_width", "more"), [(2, 0.0, True), (3, 0.3, True), (3, 0.1, False), (5, 0.3, False)]
)
def test_seeds_are_added_until_the_interval_is_narrow_or_there_are_too_many(count, half_width, more):
    assert needs_more(Estimate(0.0, half_width, count), 0.2, least=3, most=5) == more


def test_trials_are_options_of_a_run_and_the_first_is_the_defaults():
    trials = draw_trials(40)
    assert trials[:5] == draw_trials(5)
    assert trials[0] == {}
    for trial in trials[1:]:
        TrainConfig(**trial)
        assert 3e-4 <= trial["dense_lr"] <= 1e-2
        assert trial["batch_size"] in (512, 1024, 2048)
    assert len({trial["dense_lr"] for trial in trials[1:]}) == 39


def test_trials_of_towers_are_those_of_flat_models_and_a_rate_of_their_modules():
    trials = draw_trials(20, towers=True)
    assert [{name: trial[name] for name in trial if name != "tower_lr"} for trial in trials] == draw_trials(20)
    assert len({trial["tower_lr"] for trial in trials[1:]}) == 19
    near = draw_near({"tower_lr": 1.7e-3}, 200, 1, towers=True)
    assert np.std(np.log([trial["tower_lr"] for trial in near])) == pytest.approx(math.log(100 / 3) / 6, rel=0.2)
    assert "tower_lr" not in draw_near(trials[1], 1, 1)[0]


def test_few_trials_cover_every_range_and_correlate_none():
    points = np.array([_numbers(trial) for trial in draw_trials(20, towers=True)[1:]])
    for column, bins in zip(points.T, (4, 4, 4, 4, 2, 3), strict=True):
        counts, _ = np.histogram(column, bins=bins, range=(0, 1))
        assert counts.max() - counts.min() <= 3
    correlations = stats.spearmanr(points).statistic
    assert np.abs(correlations - np.eye(6)).max() < 0.2


def _numbers(trial):
    """Where an option lies in its range, from 0 to 1."""
    shares = [math.log(trial[name] / low) / math.log(high / low) for name, (low, high) in ranges(True).items()]
    return shares + [(some.index(trial[name]) + 0.5) / len(some) for name, some in CHOICES.items()]


def test_trials_near_others_stay_in_the_space_and_come_nearer():
    middle = {"dense_lr": 9e-3, "table_lr": 0.02, "batch_size": 2048}
    wide, narrow = (draw_near(middle, 200, step) for step in (1, 3))
    for trial in wide + narrow:
        TrainConfig(**trial)
        for name, (low, high) in RANGES.items():
            assert low <= trial[name] <= high
    spreads = [np.std(np.log([trial["table_lr"] for trial in some])) for some in (wide, narrow)]
    assert spreads[0] == pytest.approx(math.log(100) / 6, rel=0.15)
    assert spreads[1] == pytest.approx(math.log(100) / 18, rel=0.15)
    kept = [np.mean([trial["batch_size"] == 2048 for trial in some]) for some in (wide, narrow)]
    assert 0.7 < kept[0] < kept[1] < 1
    assert min(trial["table_weight_decay"] for trial in wide) == 1e-5  # that of the middle is the defaults': none


def test_a_search_runs_the_best_again_and_then_looks_near_the_best_so_far():
    search, scores = Search(trials=8, near=4, rounds=2, finalists=2, seeds=3), {}

    def score(options, seed):
        return scores.get((json.dumps(options), seed))

    def true(options):  # the peak lies far from the defaults
        return 0.7 - 0.01 * abs(math.log(options.get("dense_lr", 1e-3) / 6e-3))

    asked, middles = [], []
    while (course := search.course(score)).missing:
        assert course.best is None
        asked.append(course.missing)
        for options, seed in course.missing:  # the first trial is lucky, once
            scores[json.dumps(options), seed] = true(options) + (0.02 if (options, seed) == ({}, 0) else 0)
        judged = [options for options, seed in course.known if score(options, 2)]
        middles.append(max(judged, key=true, default=None))
    assert [len(missing) for missing in asked] == [8, 2 * 2, 4, 2 * 2, 4, 2 * 2]
    assert {} in [options for options, _ in asked[1]]
    for step in (1, 2):
        middle = middles[2 * step - 1]
        assert middle != {}
        assert [options for options, _ in asked[2 * step]] == draw_near(middle, 4, step)
    assert course.best == middles[-1] != middles[1]
    assert course.mean == pytest.approx(true(course.best))
    assert len(course.known) == len(scores) == sum(map(len, asked))


def test_a_lucky_run_is_found_out():
    def score(options, seed):
        return 0.8 if options == {} and seed == 0 else 0.6 if options == {} else 0.7

    assert Search(trials=4, rounds=0, finalists=2, seeds=3).course(score).best == draw_trials(2)[1]
    assert Search(trials=4, rounds=0, finalists=2, seeds=1).course(score).best == {}
