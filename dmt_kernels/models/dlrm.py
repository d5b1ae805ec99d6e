"""DLRM, flat or multi-tower."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from dmt_kernels.models.base import Model
from dmt_kernels.models.dot_interaction import DotInteraction
from dmt_kernels.models.expansion import Expansion
from dmt_kernels.models.mlp import MLP
from dmt_kernels.spec import InputError
from dmt_kernels.towers import init_parameters_


class DLRM(Model):
    """Deep learning recommendation model (Naumov et al., arXiv 1906.00091) over any exchange.

    Whether the model is flat or multi-tower is the exchange's business: what arrives is ``[B, sum(out_widths)]``, read
    as features of ``out_dim``, or mapped to such. With pass-through towers the model is the flat DLRM. Everything
    behind the exchange runs once for each of its chunks.

    Parameters
    ----------
    exchange : nn.Module
        Maps a :class:`Jagged` to ``[B, sum(exchange.out_widths)]``.
    dense_width : int
        Columns ``K`` of the dense input; with 0 there is no bottom MLP and no dense feature.
    out_dim : int
        Width of a feature in the interaction.
    expand : bool
        What the exchange gives is first mapped to a feature of `out_dim` for each of ``exchange.tower_dims``
        (:class:`~dmt_kernels.models.Expansion`), so that the interaction is the flat model's. By default towers give
        the features, as in the paper, and their widths have to be multiples of `out_dim`.
    columns : sequence of sequence of int, optional
        The map undoes towers that start as isometries with these columns of their features, and the same `seed`;
        without `expand` they change nothing.
    bottom, top : sequence of int
        Hidden widths of the MLP before and after the interaction.
    seed : int
        Initial values of all but the exchange: see :mod:`dmt_kernels.towers.init`.

    Raises
    ------
    InputError
        If a tower's width is not a multiple of ``out_dim``, `columns` are not what the towers give, or fewer than two
        features meet.
    """

    def __init__(
        self,
        exchange: nn.Module,
        dense_width: int,
        out_dim: int,
        *,
        expand: bool = False,
        columns: Sequence[Sequence[int]] | None = None,
        bottom: Sequence[int] = (64, 32),
        top: Sequence[int] = (128, 64),
        seed: int = 0,
    ) -> None:
        super().__init__(exchange)
        self.expand: nn.Module = nn.Identity()
        widths = cast(Sequence[int], exchange.out_widths)
        if expand:
            self.expand = expansion = Expansion(exchange, out_dim=out_dim, columns=columns, seed=seed)
            widths = [expansion.out_features]
        for t, width in enumerate(widths):
            if width % out_dim:
                raise InputError(
                    f"tower {t} gives {width} columns, which is not a multiple of the DLRM's dim {out_dim}"
                )
        dense_out = out_dim if dense_width else 0
        features = (sum(widths) + dense_out) // out_dim
        if features < 2:
            raise InputError("a DLRM needs at least two features, dense input included, to take dot products of")
        self.out_dim = out_dim
        self.bottom = MLP(dense_width, (*bottom, dense_out), last_relu=True) if dense_width else None
        self.interaction = DotInteraction(features)
        self.top = MLP(self.interaction.out_width + dense_out, (*top, 1), last_relu=False)
        if self.bottom is not None:
            init_parameters_(self.bottom, seed, "bottom")
        init_parameters_(self.top, seed, "top")

    def beside(self, dense: Tensor) -> tuple[Tensor, ...]:
        """The dense input's feature ``[B, out_dim]``, if there is one."""
        return () if self.bottom is None else (self.bottom(dense),)

    def logits(self, embeddings: Tensor, *beside: Tensor) -> Tensor:  # noqa: D102  (the base class has the words)
        embeddings = self.expand(embeddings)
        if not beside:
            return self.top(self.interaction(embeddings.unflatten(1, (-1, self.out_dim)))).squeeze(1)
        (dense_feature,) = beside
        return self.top(self.interaction.behind(dense_feature, embeddings, self.out_dim)).squeeze(1)
