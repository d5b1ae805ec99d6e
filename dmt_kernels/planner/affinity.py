"""How alike features are: by embeddings, by ids, or as the user says. ``[F, F]``, 1 on the diagonal."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmt_kernels.spec import InputError

_CODES = 64  # values that an id is told apart by: the commonest, and one for all others
_TILE = 4096  # columns, or rows, of what is multiplied at a time


def alignment(pooled: Tensor, dims: Sequence[int]) -> np.ndarray:
    """How well one feature's embeddings predict another's, linearly, over a sample of rows.

    With ``X_f`` the embeddings of feature f, centred over the rows, this is ``|X_f' X_g| / sqrt(|X_f' X_f| |X_g'
    X_g|)`` in Frobenius norms: the square root of linear CKA (Kornblith et al., 2019). Equivalently, the cosine of the
    two features' tables of similarities between rows. Unlike the mean cosine it is blind to what all rows have in
    common, and to rotation: two features are alike if they tell the same rows apart.

    Parameters
    ----------
    pooled : Tensor
        ``[n, sum of dims]``, the pooled embeddings of n samples.
    dims : sequence of int
        Width of every feature.

    Returns
    -------
    ndarray
        ``[F, F]`` float64 in ``[0, 1]``.
    """
    starts = np.cumsum([0, *dims])
    feature_of = torch.from_numpy(np.repeat(np.arange(len(dims)), dims))
    pooled = pooled.float() - pooled.float().mean(0)
    squares = torch.zeros(len(dims), len(dims), dtype=torch.float64)
    for first, stop in _tiles(starts):
        covariance = (pooled[:, starts[first] : starts[stop]].T @ pooled).double().square() / len(pooled) ** 2
        rows = torch.zeros(stop - first, pooled.shape[1], dtype=torch.float64)
        rows.index_add_(0, feature_of[starts[first] : starts[stop]] - first, covariance)
        squares[first:stop].index_add_(1, feature_of, rows)
    own = squares.diagonal().clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    return _with_ones((squares / own[:, None] / own[None]).sqrt().numpy())


def mean_cosine(pooled: Tensor, dims: Sequence[int]) -> np.ndarray:
    """Mean absolute cosine of two features' pooled embeddings, over a sample of rows: the paper's affinity.

    Parameters and result are those of :func:`alignment`; all dims must be equal.

    Raises
    ------
    InputError
        If they are not.
    """
    if len(set(dims)) != 1:
        raise InputError(f"cosines need one embedding dim, not {sorted(set(dims))}")
    unit = torch.nn.functional.normalize(pooled.float().view(len(pooled), len(dims), dims[0]), dim=2)
    total = torch.zeros(len(dims), len(dims), dtype=torch.float64)
    for rows in unit.split(max(1, _TILE**2 // len(dims) ** 2)):
        total += (rows @ rows.transpose(1, 2)).abs().sum(0)
    return _with_ones((total / len(unit)).numpy())


def mutual_information(ids: np.ndarray, seed: int = 0) -> np.ndarray:
    """Normalised mutual information of features' ids, with what chance alone would show taken off.

    A feature's 63 commonest ids are told apart, all others are one value: with more, a sample of some thousand rows
    makes any two features look dependent. What is left of that is measured on shuffled rows and taken off: ``(I -
    I_shuffled) / ((H_f + H_g) / 2 - I_shuffled)``, at least 0.

    Parameters
    ----------
    ids : ndarray
        ``[F, n]`` integers, one value per feature and row.
    seed : int
        Of the shuffle.

    Returns
    -------
    ndarray
        ``[F, F]`` float64 in ``[0, 1]``.
    """
    features, rows = ids.shape
    codes = np.stack([_commonest(row) for row in ids]) if features else ids
    shuffled = codes[:, np.random.default_rng(seed).permutation(rows)]
    xlogx = np.arange(rows + 1) * np.log(np.maximum(np.arange(rows + 1), 1))

    def entropy(values: np.ndarray) -> float:
        return float(np.log(rows) - xlogx[np.bincount(values, minlength=1)].sum() / rows)

    own = [entropy(row) for row in codes]
    result = np.eye(features)
    for f in range(features):
        for g in range(f + 1, features):
            information = own[f] + own[g] - entropy(codes[f] * _CODES + codes[g])
            chance = own[f] + own[g] - entropy(codes[f] * _CODES + shuffled[g])
            most = (own[f] + own[g]) / 2 - chance
            result[f, g] = result[g, f] = max(0.0, information - chance) / most if most > 1e-12 else 0.0
    return result


def load_affinity(path: Path, features: int) -> np.ndarray:
    """Read a user's matrix from a ``.npy`` or, with commas, a ``.csv`` file.

    Returns
    -------
    ndarray
        ``[F, F]`` float64, features in the order of the tables.

    Raises
    ------
    InputError
        If it cannot be read, has another shape, is not symmetric or holds something that is no finite number.
    """
    try:
        matrix = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, delimiter=",", ndmin=2)
        matrix = matrix.astype(np.float64)
    except OSError as error:
        raise InputError(f"affinity file {path} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"affinity file {path} is no matrix of numbers (.npy, or .csv with commas)") from None
    check_affinity(matrix, features, f"affinity file {path}")
    return matrix


def check_affinity(matrix: np.ndarray, features: int, name: str = "the affinity") -> None:
    """Refuse what is no symmetric, finite ``[F, F]`` matrix, with an `InputError`."""
    if matrix.shape != (features, features):
        raise InputError(f"{name} is {' x '.join(map(str, matrix.shape))}, and there are {features} features")
    if not np.isfinite(matrix).all():
        raise InputError(f"{name} holds something that is no finite number")
    if not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6):
        raise InputError(f"{name} is not symmetric")


def _commonest(ids: np.ndarray) -> np.ndarray:
    """Replace ids by codes below `_CODES`, the commonest ones' first."""
    _, place, count = np.unique(ids, return_inverse=True, return_counts=True)
    code = np.empty(len(count), np.int64)
    code[np.argsort(-count, kind="stable")] = np.minimum(np.arange(len(count)), _CODES - 1)
    return code[place]


def _tiles(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of features with about `_TILE` columns."""
    first = 0
    while first < len(starts) - 1:
        stop = max(first + 1, int(np.searchsorted(starts, starts[first] + _TILE, side="right")) - 1)
        yield first, stop
        first = stop


def _with_ones(matrix: np.ndarray) -> np.ndarray:
    matrix = np.clip((matrix + matrix.T) / 2, 0, 1)
    np.fill_diagonal(matrix, 1)
    return matrix
