"""Rows stored column by column, in memory or memory-mapped, in one part or several."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dmt_kernels.train.data.dataset import FeatureInfo, Rows, id_dtype


class Bags(NamedTuple):
    """A multi-valued column: row ``i`` holds ``ids[offsets[i] : offsets[i + 1]]``."""

    ids: np.ndarray
    offsets: np.ndarray

    def take(self, rows: np.ndarray) -> "Bags":
        """Gather rows (``[n]`` integers) into a column of their own."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Bags(self.ids[np.repeat(starts, lengths) + within], offsets)


class Part(NamedTuple):
    """Consecutive rows of a data set: ``[n]`` labels, ``[n, K]`` dense and one column per feature.

    The column of a feature with exactly one id per row is the ``[n]`` array of ids.
    """

    label: np.ndarray
    dense: np.ndarray
    columns: Sequence[np.ndarray | Bags]


class ColumnDataset:
    """A data set of columns whose splits are ranges of rows.

    Parameters
    ----------
    name : str
        How a report calls the data.
    features : Sequence[FeatureInfo]
        One per column.
    splits : Mapping[str, tuple[int, int]]
        First row and row after the last of "train", "valid" and "test", counted over all parts.
    parts : Sequence[Part]
        The rows, in order.
    best_auc, planted_groups
        See `Dataset`.
    """

    def __init__(
        self,
        name: str,
        features: Sequence[FeatureInfo],
        splits: Mapping[str, tuple[int, int]],
        parts: Sequence[Part],
        best_auc: float | None = None,
        planted_groups: tuple[tuple[str, ...], ...] | None = None,
    ) -> None:
        self.name = name
        self.features = tuple(features)
        self.dense_width = parts[0].dense.shape[1]
        self.best_auc = best_auc
        self.planted_groups = planted_groups
        self._splits = dict(splits)
        self._parts = list(parts)
        self._part_starts = np.cumsum([0] + [len(part.label) for part in parts])
        self._id_dtype = id_dtype(features)

    def rows(self, split: str) -> int:
        """Return the number of rows of a split."""
        start, stop = self._splits[split]
        return stop - start

    def read(self, split: str, index: np.ndarray, order: Sequence[int] | None = None) -> Rows:
        """Read rows of a split; see `Dataset.read`."""
        picks, back = self._locate(index + self._splits[split][0])
        ids, lengths = [], []
        for feature in range(len(self.features)) if order is None else order:
            if self.features[feature].multi:
                bags = [_bags(part.columns[feature]).take(rows) for part, rows in picks]
                column = bags[0] if back is None else _concatenate(bags).take(back)
                ids.append(column.ids)
                lengths.append(np.diff(column.offsets))
            else:
                ids.append(_gather([_single(part.columns[feature])[rows] for part, rows in picks], back))
                lengths.append(np.ones(len(index), np.int64))
        return Rows(
            dense=_gather([part.dense[rows] for part, rows in picks], back),
            ids=np.concatenate(ids or [np.empty(0)]).astype(self._id_dtype, copy=False),
            lengths=np.stack(lengths) if lengths else np.empty((0, len(index)), np.int64),
            label=_gather([part.label[rows] for part, rows in picks], back).astype(np.float32),
        )

    def _locate(self, rows: np.ndarray) -> tuple[list[tuple[Part, np.ndarray]], np.ndarray | None]:
        """Group rows by part; also say how to bring the groups back into the order asked for."""
        part_of = np.searchsorted(self._part_starts[1:], rows, side="right")
        if not len(rows) or (part_of == part_of[0]).all():
            part = int(part_of[0]) if len(rows) else 0
            return [(self._parts[part], rows - self._part_starts[part])], None
        grouped = np.argsort(part_of, kind="stable")
        back = np.empty_like(grouped)
        back[grouped] = np.arange(len(grouped))
        picks = []
        for part in np.unique(part_of):
            picks.append((self._parts[part], rows[part_of == part] - self._part_starts[part]))
        return picks, back


def _gather(pieces: list[np.ndarray], back: np.ndarray | None) -> np.ndarray:
    return pieces[0] if back is None else np.concatenate(pieces)[back]


def _concatenate(pieces: list[Bags]) -> Bags:
    lengths = np.concatenate([np.diff(piece.offsets) for piece in pieces])
    return Bags(np.concatenate([piece.ids for piece in pieces]), np.concatenate(([0], np.cumsum(lengths))))


def _bags(column: np.ndarray | Bags) -> Bags:
    assert isinstance(column, Bags)
    return column


def _single(column: np.ndarray | Bags) -> np.ndarray:
    assert isinstance(column, np.ndarray)
    return column
