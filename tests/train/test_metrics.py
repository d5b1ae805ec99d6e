"""AUC and log loss."""

import math

import numpy as np
import pytest

from dmt_kernels.train.metrics import Scores, score


def test_scores_of_a_hand_made_case():
    # Of the 2 x 2 pairs (click, no click), three are in order and none is tied.
    scores = score(np.array([2.0, 0.5, 1.0, -1.0]), np.array([1, 1, 0, 0]))
    assert scores.auc == 0.75
    logits, signs = np.array([2.0, 0.5, 1.0, -1.0]), np.array([1, 1, -1, -1])
    assert scores.logloss == pytest.approx(np.log1p(np.exp(-signs * logits)).mean())
    assert scores.samples == 4


def test_confident_mistakes_stay_finite():
    assert math.isfinite(score(np.array([1e4, -1e4]), np.array([0, 1])).logloss)


def test_one_class_has_no_auc():
    scores = score(np.array([0.3, 0.1]), np.array([0, 0]))
    assert scores.auc is None
    assert scores.logloss > 0


def test_no_samples():
    assert score(np.empty(0), np.empty(0)) == Scores(None, None, 0)


def test_a_diverged_model_is_an_error():
    with pytest.raises(FloatingPointError, match="lower the learning rates"):
        score(np.array([np.nan]), np.array([1]))


@pytest.mark.parametrize(
    ("ours", "theirs", "wins"),
    [
        (Scores(0.7, 0.5, 9), None, True),
        (Scores(0.7, 0.6, 9), Scores(0.6, 0.5, 9), True),
        (Scores(0.7, 0.5, 9), Scores(0.7, 0.6, 9), False),
        (Scores(None, 0.5, 9), Scores(None, 0.6, 9), True),
        (Scores(None, None, 0), Scores(None, None, 0), False),
    ],
    ids=["first", "AUC decides", "tie", "log loss without AUC", "nothing to judge by"],
)
def test_which_model_is_better(ours, theirs, wins):
    assert ours.beats(theirs) is wins
