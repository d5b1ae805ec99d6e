"""The tower module for models that cross features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dmt_kernels.towers.base import TowerModule
from dmt_kernels.towers.cross_net import CrossNet
from dmt_kernels.towers.init import init_parameters_, isometry


class DCNTower(TowerModule):
    """A cross net over the flattened tower, then a projection, as in DMT (Luo et al., MLSys 2024).

    The projection starts as an isometry that keeps features apart (:func:`~dmt_kernels.towers.init.isometry`), which
    the map behind the towers of a :class:`~dmt_kernels.models.DCN` begins by undoing, times
    ``(D_t / out_width) ** (1 / 4)``: half of the way to what makes up for the lengths that are lost. All of it helps
    where there is much to be learned in one pass, none of it where models overfit (docs/quality.md).

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
        seed: int = 0,
        name: str = "tower",
    ) -> None:
        super().__init__(dims, out_width)
        self.cross = CrossNet(self.in_width, layers, rank=rank)
        self.project = nn.Linear(self.in_width, out_width)
        init_parameters_(self, seed, name)
        with torch.no_grad():
            gain = (self.in_width / out_width) ** 0.25
            self.project.weight.copy_(gain * isometry(self.dims, out_width, seed))

    def forward(self, x: Tensor) -> Tensor:
        """Cross and project ``x`` ``[N, D_t]``: ``[N, out_width]``."""
        return self.project(self.cross(x))
