"""In which order an epoch visits the rows."""

import numpy as np

from dmt_kernels.spec.seeding import derive_seed
from dmt_kernels.train.data.hashing import permutation

BLOCK_ROWS = 4096
WINDOW_BLOCKS = 1024


class SequentialOrder:
    """Rows as they lie."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the rows at positions ``start..stop-1``, ``[stop - start]`` int64."""
        return np.arange(start, stop, dtype=np.int64)


class ShuffledOrder:
    """A permutation by (seed, epoch), the same on every rank, in memory bounded by a window.

    Blocks of consecutive rows are permuted, then cut into windows, and the rows of a window are
    permuted among themselves. Sets of at most one window (4 Mi rows) are so shuffled in full; of
    larger ones a window is what stays in the page cache and what the permutation costs in memory.

    Parameters
    ----------
    count : int
        Rows to permute.
    seed, epoch : int
        What the permutation depends on.
    block_rows, window_blocks : int
        Rows per block and blocks per window.
    """

    def __init__(
        self, count: int, seed: int, epoch: int, block_rows: int = BLOCK_ROWS, window_blocks: int = WINDOW_BLOCKS
    ) -> None:
        self._count, self._seed, self._epoch = count, seed, epoch
        self._block_rows, self._window_blocks = block_rows, window_blocks
        blocks = -(-count // block_rows)
        self._blocks = permutation(derive_seed(seed, "shuffle", epoch), blocks)
        sizes = np.minimum(block_rows, count - self._blocks * block_rows)
        by_window = np.add.reduceat(sizes, np.arange(0, blocks, window_blocks)) if blocks else sizes
        self._window_starts = np.concatenate(([0], np.cumsum(by_window))).astype(np.int64)
        # Replaced as one tuple, so that loader threads in different windows never mix two of them.
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def _window(self, window: int) -> np.ndarray:
        at, rows = self._cached
        if at != window:
            blocks = self._blocks[window * self._window_blocks : (window + 1) * self._window_blocks]
            rows = (blocks[:, None] * self._block_rows + np.arange(self._block_rows)).ravel()
            rows = rows[rows < self._count]
            rows = rows[permutation(derive_seed(self._seed, "shuffle", self._epoch, window), len(rows))]
            self._cached = (window, rows)
        return rows

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the rows at positions ``start..stop-1``, ``[stop - start]`` int64."""
        pieces = []
        window = int(np.searchsorted(self._window_starts, start, side="right")) - 1
        while start < stop:
            first, last = self._window_starts[window], self._window_starts[window + 1]
            pieces.append(self._window(window)[start - first : min(stop, last) - first])
            start, window = min(stop, int(last)), window + 1
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)
