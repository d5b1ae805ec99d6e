"""DCN-v2, flat or multi-tower."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dmt_kernels.models.mlp import MLP
from dmt_kernels.spec import Jagged
from dmt_kernels.towers import CrossNet, init_parameters_, isometry


class DCN(nn.Module):
    """Deep and cross network v2 (Wang et al., WWW 2021), stacked form, over any exchange.

    Dense input and embeddings are crossed, then go through an MLP. What towers compressed may first be mapped back to
    the columns that it came from, so that as many crosses are left. Whether the model is flat or multi-tower is the
    exchange's business; with pass-through towers it is the flat DCN.

    Parameters
    ----------
    exchange : nn.Module
        Maps a :class:`Jagged` to ``[B, sum(exchange.out_widths)]``; any widths.
    dense_width : int
        Columns ``K`` of the dense input; may be 0.
    expand : sequence of sequence of int, optional
        Embedding dims of the features of every tower, ``exchange.tower_dims``: what the exchange gives is mapped to
        ``[B, sum(sum(dims) for dims in expand)]`` first, by a map that starts as the transpose of the one that the
        projections of :class:`~dmt_kernels.towers.DCNTower` of the same `seed` start as: columns of a feature go back
        to where they came from. None: it is crossed as it comes.
    layers : int
        Number of crosses.
    rank : int or None
        Rank of the cross matrices; None: full.
    deep : sequence of int
        Hidden widths of the MLP.
    seed : int
        Initial values of all but the exchange: see :mod:`dmt_kernels.towers.init`.

    Raises
    ------
    InputError
        If the cross net has no layer or a bad rank.
    """

    def __init__(
        self,
        exchange: nn.Module,
        dense_width: int,
        *,
        expand: Sequence[Sequence[int]] | None = None,
        layers: int = 2,
        rank: int | None = None,
        deep: Sequence[int] = (128, 64),
        seed: int = 0,
    ) -> None:
        super().__init__()
        out_widths = cast(Sequence[int], exchange.out_widths)
        width = dense_width + sum(map(sum, expand) if expand else out_widths)
        self.exchange = exchange
        self.expand = nn.Linear(sum(out_widths), width - dense_width) if expand else nn.Identity()
        self.cross = CrossNet(width, layers, rank=rank)
        self.deep = MLP(width, (*deep, 1), last_relu=False)
        init_parameters_(self.expand, seed, "expand")
        if isinstance(self.expand, nn.Linear) and expand:
            isometries = [isometry(dims, out, seed) for dims, out in zip(expand, out_widths, strict=True)]
            with torch.no_grad():
                self.expand.weight.copy_(torch.block_diag(*isometries).T)
        init_parameters_(self.cross, seed, "cross")
        init_parameters_(self.deep, seed, "deep")

    def forward(self, dense: Tensor, sparse: Jagged) -> Tensor:
        """Return logits ``[B]`` for ``dense`` ``[B, K]`` and the bags of all features."""
        x = torch.cat([dense, self.expand(self.exchange(sparse))], dim=1)
        return self.deep(self.cross(x)).squeeze(1)
