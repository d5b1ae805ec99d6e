"""How well predictions fit labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Figures of one split.

    Parameters
    ----------
    auc : float or None
        Area under the ROC curve; None where only one class occurs.
    logloss : float or None
        Mean negative log-likelihood, in nats; None without samples.
    samples : int
        Real samples behind the figures.
    """

    auc: float | None
    logloss: float | None
    samples: int

    def beats(self, other: "Scores | None") -> bool:
        """Whether this is the better model: by AUC, or by log loss where there is none."""
        if other is None:
            return True
        if self.auc is not None and other.auc is not None:
            return self.auc > other.auc
        return self.logloss is not None and other.logloss is not None and self.logloss < other.logloss


def score(logits: NDArray, label: NDArray) -> Scores:
    """Score predictions.

    Parameters
    ----------
    logits : ndarray
        ``[N]`` log-odds.
    label : ndarray
        ``[N]``, 0 or 1.

    Raises
    ------
    FloatingPointError
        If a prediction is not a number.
    """
    from sklearn.metrics import log_loss, roc_auc_score  # takes a second, and only rank 0 scores

    if not len(label):
        return Scores(None, None, 0)
    if not np.isfinite(logits).all():
        raise FloatingPointError(
            "the model predicts NaN or infinity: the training has diverged, lower the learning rates"
        )
    probability = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
    both = 0 < np.count_nonzero(label) < len(label)
    return Scores(
        float(roc_auc_score(label, probability)) if both else None,
        float(log_loss(label, probability, labels=[0, 1])),
        len(label),
    )
