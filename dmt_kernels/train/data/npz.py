"""Rows in one .npz file, held in memory.

Keys: ``sparse`` int ``[N, F]`` and ``cards`` ``[F]``; ``label`` ``[N]``; optionally ``dense`` ``[N, K]``, ``names``
``[F]`` (else ``f0, f1, ...``), ``split`` ``[N]`` (0 train, 1 valid, 2 test; else a random 80/10/10 from the seed). A
multi-valued feature is a pair ``ids/NAME`` and ``offsets/NAME`` ``[N + 1]``, with its cardinality in
``cards/NAME`` (else its largest id plus one); a file with such pairs may do without ``sparse``. Other keys are ignored.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dmt_kernels.spec.errors import InputError
from dmt_kernels.spec.seeding import derive_seed
from dmt_kernels.train.data.columns import Bags, ColumnDataset, Part
from dmt_kernels.train.data.dataset import SPLITS, FeatureInfo, id_dtype
from dmt_kernels.train.data.hashing import permutation


def load_npz(path: Path, *, seed: int) -> ColumnDataset:
    """Load and check a whole .npz file.

    Raises
    ------
    InputError
        When the file is missing or its contents do not fit the description above.
    """
    try:
        arrays = _read_arrays(path)
        return _build(path, arrays, seed)
    except InputError as error:
        raise InputError(f"npz: {path}: {error}") from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError("no such file")
    wanted = ("sparse", "cards", "label", "dense", "names", "split")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError("this is a single array, not an .npz archive")
        with archive:
            keys = [key for key in archive.files if key in wanted or key.startswith(("ids/", "offsets/", "cards/"))]
            return {key: archive[key] for key in keys}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot be read as an .npz archive of plain arrays ({error})") from error


def _build(path: Path, arrays: Mapping[str, np.ndarray], seed: int) -> ColumnDataset:
    label = _label(arrays)
    rows = len(label)
    features, columns = _single_valued(arrays, rows)
    for key in arrays:
        kind, _, name = key.partition("/")
        if kind == "offsets" and f"ids/{name}" not in arrays:
            raise InputError(f"{key} has no ids/{name}")
        if kind == "ids":
            feature, bags = _multi_valued(arrays, name, rows)
            features.append(feature)
            columns.append(bags)
    if not features:
        raise InputError("there is neither a sparse array nor an ids/NAME with offsets/NAME, so no feature")
    names = [feature.name for feature in features]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two features are called {name!r}")

    split = _split(arrays, rows, seed)
    order = np.argsort(split, kind="stable")
    bounds = np.searchsorted(split[order], range(len(SPLITS) + 1))
    part = Part(label[order], _dense(arrays, rows)[order], [_reorder(column, order, features) for column in columns])
    splits = {name: (int(bounds[i]), int(bounds[i + 1])) for i, name in enumerate(SPLITS)}
    return ColumnDataset(path.name, features, splits, [part])


def _reorder(column: np.ndarray | Bags, order: np.ndarray, features: list[FeatureInfo]) -> np.ndarray | Bags:
    dtype = id_dtype(features)
    if isinstance(column, Bags):
        taken = column.take(order)
        return Bags(taken.ids.astype(dtype), taken.offsets)
    return column[order].astype(dtype)


def _label(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if "label" not in arrays:
        raise InputError("there is no array called label")
    label = arrays["label"]
    if label.ndim != 1 or not len(label):
        raise InputError(f"label has shape {label.shape} instead of [N] with N > 0")
    if label.dtype.kind not in "biuf":
        raise InputError(f"label has dtype {label.dtype}, not numbers")
    bad = np.flatnonzero((label != 0) & (label != 1))
    if len(bad):
        raise InputError(f"label of row {bad[0]} is {label[bad[0]]}, neither 0 nor 1 ({len(bad)} such rows)")
    return label.astype(np.uint8)


def _single_valued(arrays: Mapping[str, np.ndarray], rows: int) -> tuple[list[FeatureInfo], list[np.ndarray | Bags]]:
    if "sparse" not in arrays:
        return [], []
    sparse = arrays["sparse"]
    if sparse.ndim != 2 or len(sparse) != rows:
        raise InputError(f"sparse has shape {sparse.shape} instead of [N, F] with the N = {rows} of label")
    if sparse.dtype.kind not in "iu":
        raise InputError(f"sparse has dtype {sparse.dtype}, not integers")
    width = sparse.shape[1]
    if "cards" not in arrays:
        raise InputError("there is no array called cards")
    cards = arrays["cards"]
    if cards.shape != (width,):
        raise InputError(f"cards has shape {cards.shape} instead of [F] with the F = {width} of sparse")
    names = arrays.get("names", np.array([f"f{f}" for f in range(width)], dtype=str))
    if names.shape != (width,):
        raise InputError(f"names has shape {names.shape} instead of [F] with the F = {width} of sparse")
    features: list[FeatureInfo] = []
    columns: list[np.ndarray | Bags] = []
    for f in range(width):
        feature = FeatureInfo(str(names[f]), _cardinality(cards[f], str(names[f])))
        column = np.ascontiguousarray(sparse[:, f])
        _check_ids(feature, column)
        features.append(feature)
        columns.append(column)
    return features, columns


def _multi_valued(arrays: Mapping[str, np.ndarray], name: str, rows: int) -> tuple[FeatureInfo, Bags]:
    ids, offsets = arrays[f"ids/{name}"], arrays.get(f"offsets/{name}")
    if offsets is None:
        raise InputError(f"ids/{name} has no offsets/{name}")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(f"ids/{name} has shape {ids.shape} and dtype {ids.dtype} instead of [*] integers")
    if offsets.shape != (rows + 1,) or offsets.dtype.kind not in "iu":
        raise InputError(
            f"offsets/{name} has shape {offsets.shape} and dtype {offsets.dtype}"
            f" instead of [N + 1] = [{rows + 1}] integers"
        )
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
        raise InputError(f"offsets/{name} does not ascend from 0 to the {len(ids)} entries of ids/{name}")
    largest = int(ids.max()) if len(ids) else 0
    feature = FeatureInfo(name, _cardinality(arrays.get(f"cards/{name}", np.int64(largest + 1)), name), multi=True)
    _check_ids(feature, ids, offsets)
    return feature, Bags(ids, offsets)


def _cardinality(card: np.ndarray, name: str) -> int:
    if np.ndim(card) or np.asarray(card).dtype.kind not in "iu" or card < 1:
        raise InputError(f"the cardinality of feature {name!r} is {card}, not a positive integer")
    return int(card)


def _check_ids(feature: FeatureInfo, ids: np.ndarray, offsets: np.ndarray | None = None) -> None:
    bad = np.flatnonzero((ids < 0) | (ids >= feature.rows))
    if len(bad):
        row = int(bad[0]) if offsets is None else int(np.searchsorted(offsets, bad[0], side="right")) - 1
        raise InputError(
            f"feature {feature.name!r}, row {row}: id {ids[bad[0]]} is outside [0, {feature.rows})"
            f" ({len(bad)} such ids)"
        )


def _dense(arrays: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
    dense = arrays.get("dense", np.empty((rows, 0), np.float32))
    if dense.ndim != 2 or len(dense) != rows:
        raise InputError(f"dense has shape {dense.shape} instead of [N, K] with the N = {rows} of label")
    if dense.dtype.kind not in "biuf":
        raise InputError(f"dense has dtype {dense.dtype}, not numbers")
    with np.errstate(over="ignore"):
        dense = dense.astype(np.float32)
    bad = np.argwhere(~np.isfinite(dense))
    if len(bad):
        row, column = bad[0]
        raise InputError(f"dense of row {row}, column {column} is {dense[row, column]} ({len(bad)} such values)")
    return dense


def _split(arrays: Mapping[str, np.ndarray], rows: int, seed: int) -> np.ndarray:
    if "split" not in arrays:
        place = np.empty(rows, np.int64)
        place[permutation(derive_seed(seed, "split"), rows)] = np.arange(rows)
        train, valid = training_and_validation_rows(rows)
        return (place >= train).astype(np.uint8) + (place >= train + valid).astype(np.uint8)
    split = arrays["split"]
    if split.shape != (rows,) or split.dtype.kind not in "iu":
        raise InputError(f"split has shape {split.shape} and dtype {split.dtype} instead of [N] = [{rows}] integers")
    bad = np.flatnonzero((split < 0) | (split > 2))
    if len(bad):
        raise InputError(f"split of row {bad[0]} is {split[bad[0]]}, not 0 (train), 1 (valid) or 2 (test)")
    return split


def training_and_validation_rows(rows: int) -> tuple[int, int]:
    """Cut ``rows`` into 80 % to train, 10 % to validate and the rest to test; return the first two."""
    valid = test = rows // 10
    return rows - valid - test, valid
