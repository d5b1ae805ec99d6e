"""Initial values that depend on a seed and a parameter's name, or its shape, only.

Ranks that build the same module get the same parameters without a broadcast, whatever else they
have built before and in whatever order.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dmt_kernels.spec import InputError, derive_seed


@torch.no_grad()
def uniform_(parameter: Tensor, bound: float, seed: int, name: str) -> None:
    """Fill ``parameter`` in place from the uniform distribution on ``[-bound, bound)``.

    The stream is ``derive_seed(seed, name)``. Numbers are drawn on the CPU in float64 and rounded
    once, so a model agrees over devices, and over dtypes to rounding. Uniform and not normal:
    the CPU's normal generator takes another path per instruction set.
    """
    if parameter.is_meta:
        return
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, name))
    values = torch.rand(parameter.shape, generator=generator, dtype=torch.float64, device="cpu")
    parameter.copy_(values.mul_(2 * bound).sub_(bound))


def init_parameters_(module: nn.Module, seed: int, name: str) -> None:
    """Fill every parameter of ``module`` in place: matrices Xavier-uniform, the others 0.

    A matrix ``[out, in]`` gets the bound ``sqrt(6 / (in + out))`` (Glorot and Bengio, 2010).

    Parameters
    ----------
    module : nn.Module
        Its parameters have at most two dimensions.
    seed : int
        The run's seed.
    name : str
        Name of ``module`` in its model; parameter ``p`` draws from ``derive_seed(seed, f"{name}.{p}")``.
    """
    for path, parameter in module.named_parameters():
        bound = math.sqrt(6 / max(1, sum(parameter.shape))) if parameter.dim() == 2 else 0.0
        uniform_(parameter, bound, seed, f"{name}.{path}")


def isometry(dims: Sequence[int], columns: Sequence[int], seed: int) -> Tensor:
    """Return a map of a tower's features to columns, in which every feature has some of its own.

    The block of a feature is random, with orthonormal rows (with orthonormal columns where it widens), and depends on
    its shape and the seed only: the map back is the transpose, made from the same arguments. Where some feature has no
    column, all are mixed instead, by random orthonormal rows.

    Parameters
    ----------
    dims : sequence of int
        Embedding dim of every feature.
    columns : sequence of int
        Output columns of every feature.
    seed : int
        The run's seed.

    Returns
    -------
    Tensor
        ``[sum(columns), sum(dims)]``, float64, on the CPU; the same bits on every CPU.
    """
    if min(columns) < 1:
        return _orthonormal(sum(columns), sum(dims), seed)
    block = functools.cache(lambda rows, width: _orthonormal(rows, width, seed))
    return torch.block_diag(*(block(rows, dim) for rows, dim in zip(columns, dims, strict=True)))


@torch.no_grad()
def start_isometric_(weight: Tensor, dims: Sequence[int], columns: Sequence[int], seed: int) -> None:
    """Fill a tower's projection ``[C_t, D_t]`` in place with :func:`isometry`, times ``(D_t / C_t) ** (1 / 4)``.

    The factor is half of the way to what makes up, in the mean, for lengths that compression loses. Columns that do not
    fit are an :class:`InputError`.
    """
    out_width, in_width = weight.shape
    if len(columns) != len(dims) or sum(columns) != out_width:
        raise InputError(f"{len(columns)} features with {sum(columns)} columns are not {len(dims)} with {out_width}")
    if not weight.is_meta:
        weight.copy_((in_width / out_width) ** 0.25 * isometry(dims, columns, seed))


def _orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """Random orthonormal rows, or columns if there are fewer: modified Gram-Schmidt."""
    if rows > columns:
        return _orthonormal(columns, rows, seed).T
    matrix = torch.empty(rows, columns, dtype=torch.float64, device="cpu")
    uniform_(matrix, 1.0, seed, f"isometry.{rows}.{columns}")
    for i, row in enumerate(matrix):
        row /= _sums(row.square()).sqrt()
        below = matrix[i + 1 :]
        below -= _sums(below * row) * row
    return matrix


def _sums(values: Tensor) -> Tensor:
    """Sums along the last axis, added up in order on every CPU, as ``torch.sum`` does not."""
    return values.cumsum(-1)[..., -1:]


@contextmanager
def seeded_rng(seed: int, name: str) -> Iterator[None]:
    """Seed torch's CPU generator with ``derive_seed(seed, name)`` inside the ``with``, and restore it after.

    For modules of the user's that initialise themselves: all ranks of a tower must build the same.

        with seeded_rng(seed, "tower0"):
            module = CustomTower(MyModule(), dims)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, name))
        yield
