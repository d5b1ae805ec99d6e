"""What every source of rows looks like to the loader."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

SPLITS = ("train", "valid", "test")


class FeatureInfo(NamedTuple):
    """A categorical feature.

    Parameters
    ----------
    name : str
        Unique within a data set.
    rows : int
        Cardinality: ids lie in ``[0, rows)``.
    multi : bool
        Whether a sample may hold any number of ids instead of exactly one.
    """

    name: str
    rows: int
    multi: bool = False


class Rows(NamedTuple):
    """``n`` samples of ``F`` features; the numpy counterpart of a batch.

    Parameters
    ----------
    dense : np.ndarray
        ``[n, K]`` float32.
    ids : np.ndarray
        ``[N]`` int32 or int64 (see `id_dtype`): the bags one after the other, feature-major.
    lengths : np.ndarray
        ``[F, n]`` int64 ids per bag.
    label : np.ndarray
        ``[n]`` float32, 0 or 1.
    """

    dense: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    label: np.ndarray


class Dataset(Protocol):
    """Rows that can be read by their number, in any order, without reading the others."""

    @property
    def name(self) -> str:
        """How a report calls the data."""

    @property
    def features(self) -> tuple[FeatureInfo, ...]:
        """Categorical features in the source's order."""

    @property
    def dense_width(self) -> int:
        """Number ``K`` of dense features."""

    @property
    def best_auc(self) -> float | None:
        """AUC of the true probabilities on the test split where they are known."""

    @property
    def planted_groups(self) -> tuple[tuple[str, ...], ...] | None:
        """Names of the features that were made to interact, where that is known."""

    def rows(self, split: str) -> int:
        """Return the number of rows of ``"train"``, ``"valid"`` or ``"test"``."""

    def read(self, split: str, index: np.ndarray, order: Sequence[int] | None = None) -> Rows:
        """Read rows ``index`` (``[n]`` int64, in ``[0, rows(split))``, any order) of a split.

        ``order`` lists the features wanted as positions in `features`; None stands for all.
        """


def id_dtype(features: Sequence[FeatureInfo]) -> np.dtype:
    """Return the narrowest of int32 and int64 that holds every id."""
    widest = max((feature.rows for feature in features), default=0)
    return np.dtype(np.int32 if widest <= 2**31 else np.int64)
