import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dmt_kernels.train.data import SPLITS, SyntheticDataset, open_dataset
from dmt_kernels.train.data.synthetic import TOPICS, _auc

from .sources import bag

DATASET = SyntheticDataset(20_000, seed=1)
ROWS = DATASET.read("train", np.arange(20_000))


@given(st.lists(st.integers(0, 19_999), max_size=60))
@settings(max_examples=30, deadline=None)
def test_any_row_can_be_made_alone(index):
    read = DATASET.read("train", np.array(index, np.int64))
    np.testing.assert_array_equal(read.label, ROWS.label[index])
    np.testing.assert_array_equal(read.dense, ROWS.dense[index])
    np.testing.assert_array_equal(read.lengths, ROWS.lengths[:, index])
    for n, row in enumerate(index[:3]):
        assert [bag(read, f, n) for f in range(26)] == [bag(ROWS, f, row) for f in range(26)]


def test_rows_depend_on_the_seed_alone():
    index = np.arange(100)
    again, other = SyntheticDataset(20_000, seed=1), SyntheticDataset(20_000, seed=2)
    for ours, theirs in zip(again.read("test", index), DATASET.read("test", index), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (other.read("test", index).dense != again.read("test", index).dense).any()
    # The training rows of a longer log begin like those of a shorter one.
    longer = open_dataset("synthetic:30000", seed=1).read("train", index)
    np.testing.assert_array_equal(longer.ids, DATASET.read("train", index).ids)


def test_rows_are_pinned():
    # A change of the generator changes what every published figure was measured on.
    read = DATASET.read("train", np.arange(4))
    assert [bag(read, 0, n) for n in range(4)] == [[14], [1], [4], [20]]
    assert read.label.tolist() == [0, 1, 0, 1]


def test_splits_are_disjoint():
    assert [DATASET.rows(split) for split in SPLITS] == [20_000, 2_500, 2_500]
    dense = np.concatenate([DATASET.read(split, np.arange(DATASET.rows(split))).dense for split in SPLITS])
    assert len(np.unique(dense, axis=0)) == 25_000


def test_columns_are_as_described():
    starts = np.concatenate(([0], np.cumsum(ROWS.lengths.sum(axis=1))))
    cardinalities = [feature.rows for feature in DATASET.features]
    assert len(set(cardinalities)) > 20
    assert sum(feature.multi for feature in DATASET.features) == 3
    for f, feature in enumerate(DATASET.features):
        ids = ROWS.ids[starts[f] : starts[f + 1]]
        assert ids.min() >= 0
        assert ids.max() < feature.rows
        # By Zipf's law with exponent 1, rank r is drawn with probability log((r + 2) / (r + 1)) / log(R + 1).
        counts = np.bincount(ids // TOPICS, minlength=3)
        assert counts[0] > counts[1] > counts[2] > 0
        expected = np.log(2) / np.log(feature.rows / TOPICS + 1)
        assert counts[0] / len(ids) == pytest.approx(expected, abs=0.02)
        lengths = ROWS.lengths[f]
        assert set(lengths) == ({0, 1, 2, 3, 4} if feature.multi else {1})
    np.testing.assert_allclose(ROWS.dense.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(ROWS.dense.std(axis=0), 1, atol=0.03)
    assert 0.2 < ROWS.label.mean() < 0.45


def test_groups_show_in_what_occurs_together():
    place = {feature.name: f for f, feature in enumerate(DATASET.features)}
    groups = [[place[name] for name in group] for group in DATASET.planted_groups]
    assert sorted(itertools.chain(*groups)) == list(range(26))
    assert 4 <= len(groups) <= 8
    starts = np.concatenate(([0], np.cumsum(ROWS.lengths.sum(axis=1))))
    topics = {
        f: ROWS.ids[starts[f] : starts[f + 1]] % TOPICS
        for f, feature in enumerate(DATASET.features)
        if not feature.multi
    }
    together = {frozenset(pair) for group in groups for pair in itertools.combinations(group, 2)}
    for f, g in itertools.combinations(topics, 2):
        agreement = (topics[f] == topics[g]).mean()
        if {f, g} in together:
            assert agreement > 0.5
        else:
            assert agreement == pytest.approx(1 / TOPICS, abs=0.02)


def test_logit_is_a_function_of_what_a_model_sees():
    """Recompute the logits from ids and dense features alone."""
    place = {feature.name: f for f, feature in enumerate(DATASET.features)}
    index = np.arange(50)
    read = DATASET.read("valid", index)
    vectors = DATASET._vectors[:, :-1].T.reshape(-1, TOPICS, 3).astype(float)
    biases = DATASET._biases[:-1].reshape(-1, TOPICS).astype(float)
    expected = float(DATASET._offset) + read.dense @ DATASET._dense_weights.astype(float)
    for n in index:
        for g, group in enumerate(DATASET.planted_groups):
            topics = [[id % TOPICS for id in bag(read, place[name], n)] for name in group]
            pooled = [vectors[g, bag_topics].sum(axis=0) for bag_topics in topics]
            expected[n] += sum(a @ b for a, b in itertools.combinations(pooled, 2))
            expected[n] += sum(biases[g, bag_topics].sum() for bag_topics in topics)
    np.testing.assert_allclose(DATASET.logits("valid", index), expected, rtol=1e-4, atol=1e-4)


def test_labels_follow_the_logits():
    logits = DATASET.logits("train", np.arange(20_000))
    probability = 1 / (1 + np.exp(-logits))
    for low in np.arange(0, 1, 0.1):
        picked = (probability >= low) & (probability < low + 0.1)
        assert ROWS.label[picked].mean() == pytest.approx(probability[picked].mean(), abs=0.05)


def test_best_auc():
    index = np.arange(2_500)
    expected = roc_auc_score(DATASET.read("test", index).label, DATASET.logits("test", index))
    assert DATASET.best_auc == pytest.approx(expected, abs=1e-12)
    assert 0.8 < DATASET.best_auc < 0.9


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2))
def test_auc_counts_ties_half(samples):
    label, score = (np.array(column, float) for column in zip(*samples, strict=True))
    if label.min() == label.max():
        assert _auc(label, score) is None
    else:
        assert _auc(label, score) == pytest.approx(roc_auc_score(label, score))
