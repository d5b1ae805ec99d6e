"""Pieces to bins of equal size, by several loads at once: longest processing time, then local search."""

import numpy as np

_MOST_STEPS = 2000


def pack(weights: np.ndarray, bins: int, start: np.ndarray | None = None) -> np.ndarray:
    """Spread pieces so that the fullest bins are as empty as moves and swaps make them.

    Pieces go in descending order of their heaviest load to the bin that is then least full. After that, as long as that
    helps, a piece of the fullest bin moves or changes places with one of another. Deterministic.

    Parameters
    ----------
    weights : ndarray
        ``[K, N]``: K loads of N pieces, of comparable size (say, divided by the mean of a bin). A bin is as full as its
        largest load.
    bins : int
        How many.
    start : ndarray, optional
        ``[K, bins]`` what bins hold already.

    Returns
    -------
    ndarray
        ``[N]`` int64 bin of every piece.
    """
    sums = np.zeros((len(weights), bins)) if start is None else start.astype(float).copy()
    place = np.zeros(weights.shape[1], np.int64)
    for piece in np.argsort(-weights.max(0, initial=0), kind="stable"):
        full = sums + weights[:, piece : piece + 1]
        place[piece] = min(range(bins), key=lambda b: (round(full[:, b].max(), 9), round(full[:, b].sum(), 9), b))
        sums[:, place[piece]] += weights[:, piece]
    for _ in range(_MOST_STEPS):
        if not _improve(weights, place, sums):
            break
    return place


def pack_free(weights: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Pack ``[K, N]`` weights around those that have one bin to go to (``allowed``, ``[N, bins]`` bool)."""
    place, free = allowed.argmax(1), allowed.sum(1) > 1
    start = np.stack([np.bincount(place[~free], row[~free], allowed.shape[1]) for row in weights])
    place[free] = pack(weights[:, free], allowed.shape[1], start)
    return place


def _improve(weights: np.ndarray, place: np.ndarray, sums: np.ndarray) -> bool:
    """Make the move or swap after which the fuller of the two bins is least full, if the fullest bin gains by it."""
    full = sums.max(0)
    worst = int(full.argmax())
    mine, others = np.flatnonzero(place == worst), np.flatnonzero(place != worst)
    best = float(full[worst]) * (1 - 1e-9)
    change: tuple[int, int | None, int] | None = None
    for piece in mine.tolist():
        left = sums[:, worst] - weights[:, piece]
        moved = np.maximum((sums + weights[:, piece : piece + 1]).max(0), left.max())
        moved[worst] = np.inf
        if moved.min() < best:
            best, change = float(moved.min()), (piece, None, int(moved.argmin()))
        if len(others):
            gain = weights[:, others] - weights[:, piece : piece + 1]
            swapped = np.maximum((left[:, None] + weights[:, others]).max(0), (sums[:, place[others]] - gain).max(0))
            if swapped.min() < best:
                other = int(others[swapped.argmin()])
                best, change = float(swapped.min()), (piece, other, int(place[other]))
    if change is None:
        return False
    _swap(weights, place, sums, worst, change)
    return True


def _swap(
    weights: np.ndarray, place: np.ndarray, sums: np.ndarray, worst: int, change: tuple[int, int | None, int]
) -> None:
    piece, other, target = change
    going = weights[:, piece] - (weights[:, other] if other is not None else 0)
    sums[:, worst] -= going
    sums[:, target] += going
    place[piece] = target
    if other is not None:
        place[other] = worst
