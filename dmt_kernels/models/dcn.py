"""DCN-v2, flat or multi-tower."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dmt_kernels.models.mlp import MLP
from dmt_kernels.spec import InputError, Jagged
from dmt_kernels.towers import CrossNet, init_parameters_, isometry


class DCN(nn.Module):
    """Deep and cross network v2 (Wang et al., WWW 2021), stacked form, over any exchange.

    Dense input and embeddings are crossed, then go through an MLP. What towers compressed may first be mapped to as
    many columns as the flat model has, so that as many crosses are left. Whether the model is flat or multi-tower is
    the exchange's business; with pass-through towers it is the flat DCN.

    Parameters
    ----------
    exchange : nn.Module
        Maps a :class:`Jagged` to ``[B, sum(exchange.out_widths)]``; any widths.
    dense_width : int
        Columns ``K`` of the dense input; may be 0.
    expand : int, optional
        Columns that what the exchange gives is mapped to first; None: it is crossed as it comes.
    columns : sequence of sequence of int, optional
        The exchange has towers that start as isometries with these columns of their features
        (:class:`~dmt_kernels.towers.DCNTower`, of the same `seed`): the map starts as the isometries' transpose,
        without the towers' factor, so that every feature goes back to the columns that it came from. `expand` must then
        be the sum of all of ``exchange.tower_dims``; without `expand` there is no map, and this changes nothing.
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
        If the cross net has no layer or a bad rank, or `expand` is not what `columns` need.
    """

    def __init__(
        self,
        exchange: nn.Module,
        dense_width: int,
        *,
        expand: int | None = None,
        columns: Sequence[Sequence[int]] | None = None,
        layers: int = 2,
        rank: int | None = None,
        deep: Sequence[int] = (128, 64),
        seed: int = 0,
    ) -> None:
        super().__init__()
        embedding_width = sum(cast(Sequence[int], exchange.out_widths))
        width = dense_width + (expand or embedding_width)
        self.exchange = exchange
        self.expand = nn.Linear(embedding_width, expand) if expand else nn.Identity()
        self.cross = CrossNet(width, layers, rank=rank)
        self.deep = MLP(width, (*deep, 1), last_relu=False)
        init_parameters_(self.expand, seed, "expand")
        if columns is not None and isinstance(self.expand, nn.Linear):
            self._undo_isometries_(self.expand.weight, columns, seed)
        init_parameters_(self.cross, seed, "cross")
        init_parameters_(self.deep, seed, "deep")

    @torch.no_grad()
    def _undo_isometries_(self, weight: Tensor, columns: Sequence[Sequence[int]], seed: int) -> None:
        """Fill the map's `weight`, ``[sum of tower dims, sum of out widths]``, in place."""
        tower_dims = cast(Sequence[Sequence[int]], self.exchange.tower_dims)
        width = sum(map(sum, tower_dims))
        if width != len(weight):
            raise InputError(f"isometric towers have {width} columns to be mapped back to, not {len(weight)}")
        if not weight.is_meta:
            towers = zip(tower_dims, columns, strict=True)
            weight.copy_(torch.block_diag(*(isometry(dims, own, seed).T for dims, own in towers)))

    def forward(self, dense: Tensor, sparse: Jagged) -> Tensor:
        """Return logits ``[B]`` for ``dense`` ``[B, K]`` and the bags of all features."""
        x = torch.cat([dense, self.expand(self.exchange(sparse))], dim=1)
        return self.deep(self.cross(x)).squeeze(1)
