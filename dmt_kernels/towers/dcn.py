"""The tower module for models that cross features."""

from collections.abc import Sequence

from torch import Tensor, nn

from dmt_kernels.towers.base import TowerModule
from dmt_kernels.towers.cross_net import CrossNet
from dmt_kernels.towers.init import init_parameters_, start_isometric_


class DCNTower(TowerModule):
    """A cross net over the flattened tower, then a projection, as in DMT (Luo et al., MLSys 2024).

    Parameters
    ----------
    dims : sequence of int
        Embedding dim of every feature of the tower; they may differ.
    out_width : int
        Columns of the output.
    layers : int
        Crosses before the projection.
    rank : int or None
        Rank of the cross matrices; None: full, ``D_t ** 2`` weights each.
    columns : sequence of int, optional
        The projection starts as an isometry in which features have so many of its columns to themselves, `out_width`
        together, times a factor (:func:`~dmt_kernels.towers.init.start_isometric_`), which suits models that begin by
        undoing it (:class:`~dmt_kernels.models.Expansion`). None: it starts with all features mixed.
    seed, name : int, str
        Initial values: see :mod:`dmt_kernels.towers.init`.
    """

    def __init__(
        self,
        dims: Sequence[int],
        out_width: int,
        layers: int = 1,
        *,
        rank: int | None = None,
        columns: Sequence[int] | None = None,
        seed: int = 0,
        name: str = "tower",
    ) -> None:
        super().__init__(dims, out_width)
        self.cross = CrossNet(self.in_width, layers, rank=rank)
        self.project = nn.Linear(self.in_width, out_width)
        init_parameters_(self, seed, name)
        if columns is not None:
            start_isometric_(self.project.weight, self.dims, columns, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Cross and project ``x`` ``[N, D_t]``: ``[N, out_width]``."""
        return self.project(self.cross(x))
