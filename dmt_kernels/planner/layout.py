"""Features as points: the more alike (or, for diverse towers, unlike), the nearer."""

import numpy as np
import torch

from dmt_kernels.spec import InputError

DISTANCES = ("coherent", "diverse")
_STEPS = 300
_RATE = 0.02


def distances(affinity: np.ndarray, kind: str) -> np.ndarray:
    """How far apart features should lie, ``[F, F]`` from 0 to 1.

    The affinities that occur are stretched over the whole range first, since they may all lie close together.

    Parameters
    ----------
    affinity : ndarray
        ``[F, F]``; the diagonal does not matter.
    kind : {"coherent", "diverse"}
        Alike features near each other, or far apart.

    Raises
    ------
    InputError
        For an unknown kind.
    """
    if kind not in DISTANCES:
        raise InputError(f"distance {kind!r} is unknown; choose one of {', '.join(DISTANCES)}")
    others = affinity[~np.eye(len(affinity), dtype=bool)]
    low, high = (others.min(), others.max()) if len(others) else (0.0, 1.0)
    alike = (affinity - low) / (high - low) if high > low else np.zeros_like(affinity)
    apart = 1 - alike if kind == "coherent" else alike.copy()
    np.fill_diagonal(apart, 0)
    return apart


def lay_out(apart: np.ndarray, dims: int, steps: int = _STEPS) -> tuple[np.ndarray, float]:
    """Find points whose distances are nearest to the wanted ones: metric multidimensional scaling.

    Gradient steps (Adam) on the stress ``sum (|p_f - p_g| - apart_fg)^2`` over pairs, from classical scaling, the
    solution for squared distances. Deterministic.

    Parameters
    ----------
    apart : ndarray
        ``[F, F]`` wanted distances, symmetric, 0 on the diagonal.
    dims : int
        Of the space.
    steps : int
        Gradient steps.

    Returns
    -------
    points : ndarray
        ``[F, dims]`` float64.
    stress : float
        Kruskal's stress-1: the root of stress over the sum of squared wanted distances.
    """
    wanted = torch.from_numpy(apart.astype(np.float32))
    points = torch.from_numpy(_classical(apart, dims).astype(np.float32)).requires_grad_()
    total = wanted.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    # One rate for all data: it is a step's length, and distances are at most 1.
    optimizer = torch.optim.Adam([points], lr=_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    best, least = points.detach().clone(), float("inf")
    for _ in range(steps + 1):
        here = points.detach()
        found = torch.cdist(here, here)
        off = (found - wanted).fill_diagonal_(0)
        stress = (off.square().sum() / total).item()
        if stress < least:
            best, least = here.clone(), stress
        pull = off / found.clamp_min(1e-6)  # the gradient by hand: products of matrices instead of [F, F, dims]
        points.grad = (pull.sum(1, keepdim=True) * here - pull @ here) * (4 / total)
        optimizer.step()
        decay.step()
    return best.numpy().astype(np.float64), least**0.5


def _classical(apart: np.ndarray, dims: int) -> np.ndarray:
    """Torgerson's scaling: the leading eigenvectors of the doubly centred squared distances."""
    squares = apart**2
    centred = -(squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()) / 2
    values, vectors = np.linalg.eigh(centred)
    values, vectors = values[::-1][:dims], vectors[:, ::-1][:, :dims]
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])] < 0, -1, 1)
    points = np.zeros((len(apart), dims))
    points[:, : len(values)] = vectors * np.sqrt(np.maximum(values, 0))
    return points
