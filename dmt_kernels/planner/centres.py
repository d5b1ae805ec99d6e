"""Centres of towers: means of their tables' points, and what it costs to put a table elsewhere."""

import numpy as np

_ROUNDS = 12


def costs(points: np.ndarray, sizes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """``[N, T]``: over a table's features, the squared distance to every centre."""
    return sizes[:, None] * np.square(points[:, None] - centres[None]).sum(2)


def means(points: np.ndarray, sizes: np.ndarray, shares: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Means of the towers' tables, ``[T, dims]``; of an empty tower, where it was.

    ``shares`` are ``[N, T]``, or ``[N]`` towers of whole tables.
    """
    if shares.ndim == 1:
        shares = np.eye(len(before))[shares]
    weights = shares * sizes[:, None]
    total = weights.sum(0)[:, None]
    return np.where(total > 0, weights.T @ points / np.where(total > 0, total, 1), before)


def start(points: np.ndarray, sizes: np.ndarray, allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (a tower's pinned tables, or one drawn by its squared distance), then k-means without limits."""
    pinned = (allowed.sum(1) == 1)[:, None] & allowed
    fixed = pinned.any(0) & (allowed.shape[1] > 1)
    centres = means(points, sizes, pinned.astype(float), np.full((allowed.shape[1], points.shape[1]), np.nan))
    for t in np.flatnonzero(~fixed):
        known = centres[~np.isnan(centres[:, 0])]
        far = np.square(points[:, None] - known[None]).sum(2).min(1) * sizes if len(known) else sizes.astype(float)
        centres[t] = points[rng.choice(len(points), p=far / far.sum() if far.sum() else None)]
    for _ in range(_ROUNDS):
        nearest = np.where(allowed, costs(points, sizes, centres), np.inf).argmin(1)
        centres = means(points, sizes, nearest, centres)
    return centres
