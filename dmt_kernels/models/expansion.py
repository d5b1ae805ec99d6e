"""The map behind towers that compress."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn

from dmt_kernels.spec import InputError
from dmt_kernels.towers import init_parameters_, isometry

_MOST_DIM = 16  # wider dot products gained nothing that was measured, and the map costs as much more


def expanded_dim(dims: Iterable[int]) -> int:
    """Choose the width of the features that an expansion gives a DLRM: the widest embedding's, and at most 16."""
    return min(_MOST_DIM, max(dims))


class Expansion(nn.Linear):
    """Maps what arrives from compressing towers to as many features as a flat model has: ``[N, C]`` to ``[N, D]``.

    What towers spare the wire the over-arch then need not lack. The map sees what arrives from all towers.

    Parameters
    ----------
    exchange : nn.Module
        Whose ``out_widths``, ``C`` in all, arrive, of features of ``tower_dims``.
    out_dim : int, optional
        Columns of every feature, ``D`` in all; by default as many as its embeddings have.
    columns : sequence of sequence of int, optional
        The towers start as isometries with these columns of their features, of the same `seed`
        (:func:`~dmt_kernels.towers.init.start_isometric_`): the map starts as the isometries' transpose, without the
        towers' factor, so that every feature goes back to columns of its own; where its embeddings do not have
        `out_dim` of them, as the transpose of other isometries, from `out_dim`. None: it starts by Xavier.
    seed : int
        Initial values: see :mod:`dmt_kernels.towers.init`.

    Raises
    ------
    InputError
        If `columns` are not what arrives.
    """

    def __init__(
        self,
        exchange: nn.Module,
        *,
        out_dim: int | None = None,
        columns: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        out_widths = cast(Sequence[int], exchange.out_widths)
        tower_dims = cast(Sequence[Sequence[int]], exchange.tower_dims)
        dims = [[out_dim or dim for dim in tower] for tower in tower_dims]
        super().__init__(sum(out_widths), sum(map(sum, dims)))
        init_parameters_(self, seed, "expand")
        if columns is None:
            return
        if list(map(sum, columns)) != list(out_widths) or list(map(len, columns)) != list(map(len, tower_dims)):
            raise InputError(f"columns {columns} are not those of features {tower_dims} that arrive as {out_widths}")
        if not self.weight.is_meta:
            # The towers' own transposes, cut off at `out_dim`, would lose a part of what arrives (docs/trials.md).
            maps = [isometry(own, width, seed).T for own, width in zip(dims, columns, strict=True)]
            with torch.no_grad():
                self.weight.copy_(torch.block_diag(*maps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x`` ``[N, C]`` to ``[N, D]``, of its own dtype under autocast, too."""
        return super().forward(x).to(x.dtype)
