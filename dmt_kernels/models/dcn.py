"""DCN-v2, flat or multi-tower."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dmt_kernels.models.base import Model
from dmt_kernels.models.expansion import Expansion
from dmt_kernels.models.mlp import MLP
from dmt_kernels.towers import CrossNet, init_parameters_


class DCN(Model):
    """Deep and cross network v2 (Wang et al., WWW 2021), stacked form, over any exchange.

    Dense input and embeddings are crossed, then go through an MLP. What towers compressed may first be mapped to as
    many columns as the flat model has, so that as many crosses are left. Whether the model is flat or multi-tower is
    the exchange's business; with pass-through towers it is the flat DCN. Everything behind the exchange runs once for
    each of its chunks.

    Parameters
    ----------
    exchange : nn.Module
        Maps a :class:`Jagged` to ``[B, sum(exchange.out_widths)]``; any widths.
    dense_width : int
        Columns ``K`` of the dense input; may be 0.
    expand : bool
        What the exchange gives is first mapped to as many columns as the features of ``exchange.tower_dims`` have
        (:class:`~dmt_kernels.models.Expansion`); by default it is crossed as it comes.
    columns : sequence of sequence of int, optional
        The map undoes towers that start as isometries with these columns of their features, and the same `seed`;
        without `expand` they change nothing.
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
        If the cross net has no layer or a bad rank, or `columns` are not what the towers give.
    """

    def __init__(
        self,
        exchange: nn.Module,
        dense_width: int,
        *,
        expand: bool = False,
        columns: Sequence[Sequence[int]] | None = None,
        layers: int = 2,
        rank: int | None = None,
        deep: Sequence[int] = (128, 64),
        seed: int = 0,
    ) -> None:
        super().__init__(exchange)
        self.expand: nn.Module = nn.Identity()
        width = sum(cast(Sequence[int], exchange.out_widths))
        if expand:
            self.expand = expansion = Expansion(exchange, columns=columns, seed=seed)
            width = expansion.out_features
        width += dense_width
        self.cross = CrossNet(width, layers, rank=rank)
        self.deep = MLP(width, (*deep, 1), last_relu=False)
        init_parameters_(self.cross, seed, "cross")
        init_parameters_(self.deep, seed, "deep")

    def beside(self, dense: Tensor) -> tuple[Tensor, ...]:
        """The dense input as it is."""
        return (dense,)

    def logits(self, embeddings: Tensor, *beside: Tensor) -> Tensor:  # noqa: D102  (the base class has the words)
        x = torch.cat([*beside, self.expand(embeddings)], dim=1)
        return self.deep(self.cross(x)).squeeze(1)
