"""No tower module: the tower's embeddings cross hosts as they are."""

from collections.abc import Sequence

from torch import Tensor

from dmt_kernels.towers.base import TowerModule


class PassThrough(TowerModule):
    """Return the input itself.

    Parameters
    ----------
    dims : sequence of int
        Embedding dim of every feature of the tower.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__(dims, sum(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, ``[N, D_t]``."""
        return x
