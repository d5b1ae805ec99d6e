"""The tower module for models that cross features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dmt_kernels.towers.base import TowerModule
from dmt_kernels.towers.cross_net import CrossNet
from dmt_kernels.towers.init import init_parameters_, isometry


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
    isometric : bool
        The projection starts as an isometry in which features keep columns of their own
        (:func:`~dmt_kernels.towers.init.isometry`), times ``(D_t / out_width) ** (1 / 4)``, half of the way to what
        makes up for lengths that it loses. For a :class:`~dmt_kernels.models.DCN` that begins by undoing it; other
        models gained nothing by it at their best epochs, or lost (docs/quality.md).
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
        isometric: bool = False,
        seed: int = 0,
        name: str = "tower",
    ) -> None:
        super().__init__(dims, out_width)
        self.cross = CrossNet(self.in_width, layers, rank=rank)
        self.project = nn.Linear(self.in_width, out_width)
        init_parameters_(self, seed, name)
        if isometric and not self.project.weight.is_meta:
            gain = math.sqrt(math.sqrt(self.in_width / out_width))
            with torch.no_grad():
                self.project.weight.copy_(gain * isometry(self.dims, out_width, seed))

    def forward(self, x: Tensor) -> Tensor:
        """Cross and project ``x`` ``[N, D_t]``: ``[N, out_width]``."""
        return self.project(self.cross(x))
