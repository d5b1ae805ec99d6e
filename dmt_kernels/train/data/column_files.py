"""Columns on disk: a directory that is mapped into memory, not read.

::

    DIR/meta.json              features, splits, parts
    DIR/part-00000/label.npy   [n] uint8
                   dense.npy   [n, K] float32
                   ids-003.npy [n] int32 or int64 of feature 3; [N] when it is multi-valued,
                   offsets-003.npy  then with [n + 1] int64
    DIR/part-00001/...
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dmt_kernels.spec.errors import InputError
from dmt_kernels.train.data.columns import Bags, ColumnDataset, Part
from dmt_kernels.train.data.dataset import SPLITS, FeatureInfo, Rows, id_dtype

FORMAT = "dmt_kernels columns 1"


def part_name(index: int) -> str:
    """Name of the directory of part ``index``."""
    return f"part-{index:05d}"


class _NpyWriter:
    """An .npy file that grows: its header is rewritten once the number of rows is known."""

    def __init__(self, path: Path, dtype: np.dtype, width: int | None = None) -> None:
        self._file = path.open("wb")
        self._dtype, self._width, self._rows = np.dtype(dtype), width, 0
        self._write_header()

    def _write_header(self) -> None:
        shape = (self._rows,) if self._width is None else (self._rows, self._width)
        # NumPy pads the header for any number of rows, so that the rewritten one has the same length.
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        )

    def append(self, rows: np.ndarray) -> None:
        np.ascontiguousarray(rows, self._dtype).tofile(self._file)
        self._rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()


class PartWriter:
    """Write one part, some rows at a time; a context manager.

    Parameters
    ----------
    directory : Path
        Created; must not exist.
    features : Sequence[FeatureInfo]
        One column each.
    dense_width : int
        Dense features per row.
    """

    def __init__(self, directory: Path, features: Sequence[FeatureInfo], dense_width: int) -> None:
        directory.mkdir(parents=True)
        self.rows = 0
        self._features = tuple(features)
        self._label = _NpyWriter(directory / "label.npy", np.dtype(np.uint8))
        self._dense = _NpyWriter(directory / "dense.npy", np.dtype(np.float32), dense_width)
        self._ids = [_NpyWriter(directory / f"ids-{f:03d}.npy", id_dtype(features)) for f in range(len(features))]
        self._offsets = {
            f: _NpyWriter(directory / f"offsets-{f:03d}.npy", np.dtype(np.int64))
            for f, feature in enumerate(features)
            if feature.multi
        }
        self._ids_written = dict.fromkeys(self._offsets, 0)
        for offsets in self._offsets.values():
            offsets.append(np.zeros(1, np.int64))

    def append(self, rows: Rows) -> None:
        """Append rows with all features in order."""
        self._label.append(rows.label)
        self._dense.append(rows.dense)
        ends = np.cumsum(rows.lengths.sum(axis=1))
        for f, ids in enumerate(np.split(rows.ids, ends[:-1])):
            self._ids[f].append(ids)
            if f in self._offsets:
                self._offsets[f].append(self._ids_written[f] + np.cumsum(rows.lengths[f]))
                self._ids_written[f] += len(ids)
        self.rows += len(rows.label)

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for column in (self._label, self._dense, *self._ids, *self._offsets.values()):
            column.close()


def write_meta(
    directory: Path,
    *,
    name: str,
    features: Sequence[FeatureInfo],
    dense_width: int,
    splits: Mapping[str, tuple[int, int]],
    part_rows: Sequence[int],
    best_auc: float | None = None,
    planted_groups: Sequence[Sequence[str]] | None = None,
) -> None:
    """Write ``meta.json``, which turns a directory of parts into a data set; atomic."""
    meta = {
        "format": FORMAT,
        "name": name,
        "features": [feature._asdict() for feature in features],
        "dense_width": dense_width,
        "splits": {split: list(splits[split]) for split in SPLITS},
        "part_rows": list(part_rows),
        "best_auc": best_auc,
        "planted_groups": planted_groups,
    }
    write_json(directory / "meta.json", meta)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.rename(path)


def open_columns(directory: Path) -> ColumnDataset:
    """Map a columns directory.

    Raises
    ------
    InputError
        When it is missing, is not one, or its files do not fit its meta.json.
    """
    path = directory / "meta.json"
    if not path.is_file():
        raise InputError(f"columns: {directory} is not a columns directory (it has no meta.json)")
    try:
        meta = json.loads(path.read_text())
        if meta["format"] != FORMAT:
            raise InputError(f"columns: {path} has format {meta['format']!r}, this version reads {FORMAT!r}")
        features = [FeatureInfo(**feature) for feature in meta["features"]]
        splits = {split: (int(meta["splits"][split][0]), int(meta["splits"][split][1])) for split in SPLITS}
        groups = meta["planted_groups"]
        parts = [
            _open_part(directory / part_name(i), rows, features, meta["dense_width"])
            for i, rows in enumerate(meta["part_rows"])
        ]
        return ColumnDataset(
            name=meta["name"],
            features=features,
            splits=splits,
            parts=parts,
            best_auc=meta["best_auc"],
            planted_groups=None if groups is None else tuple(map(tuple, groups)),
        )
    except (json.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"columns: {path} is damaged ({type(error).__name__}: {error})") from error


def _open_part(directory: Path, rows: int, features: Sequence[FeatureInfo], dense_width: int) -> Part:
    columns: list[np.ndarray | Bags] = []
    for f, feature in enumerate(features):
        ids = _map(directory / f"ids-{f:03d}.npy", None if feature.multi else (rows,))
        if feature.multi:
            offsets = _map(directory / f"offsets-{f:03d}.npy", (rows + 1,))
            if offsets[-1] != len(ids):
                raise InputError(f"columns: {directory} holds {len(ids)} ids of {feature.name}, not {offsets[-1]}")
            columns.append(Bags(ids, offsets))
        else:
            columns.append(ids)
    return Part(_map(directory / "label.npy", (rows,)), _map(directory / "dense.npy", (rows, dense_width)), columns)


def _map(path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
    try:
        # An empty file cannot be mapped; np.asarray drops np.memmap, whose slicing is slow.
        mapped = np.load(path, mmap_mode="r") if _has_data(path) else np.load(path)
    except (OSError, ValueError) as error:
        raise InputError(f"columns: cannot map {path} ({error})") from error
    if shape is not None and mapped.shape != shape:
        raise InputError(f"columns: {path} has shape {mapped.shape}, meta.json says {shape}")
    return np.asarray(mapped)


def _has_data(path: Path) -> bool:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return 0 not in reader(file)[0]
