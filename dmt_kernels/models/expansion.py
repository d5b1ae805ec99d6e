"""The map behind towers that compress."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dmt_kernels.spec import InputError
from dmt_kernels.towers import init_parameters_, isometry


class Expansion(nn.Linear):
    """Maps what arrives from compressing towers to as many columns as a flat model's features have.

    What towers spare the wire the over-arch then need not lack. The map sees what arrives from all towers.

    Parameters
    ----------
    out_widths : sequence of int
        Columns that arrive from every tower.
    tower_dims : sequence of sequence of int
        Columns that every tower's features are mapped to, side by side.
    columns : sequence of sequence of int, optional
        The towers start as isometries with these columns of their features, of the same `seed`
        (:func:`~dmt_kernels.towers.init.start_isometric_`): the map starts as the isometries' transpose, without the
        towers' factor, so that every feature goes back to columns of its own. None: it starts by Xavier.
    seed : int
        Initial values: see :mod:`dmt_kernels.towers.init`.

    Raises
    ------
    InputError
        If `columns` are not what arrives.
    """

    def __init__(
        self,
        out_widths: Sequence[int],
        tower_dims: Sequence[Sequence[int]],
        *,
        columns: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(sum(out_widths), sum(map(sum, tower_dims)))
        init_parameters_(self, seed, "expand")
        if columns is not None:
            self._undo_isometries_(out_widths, tower_dims, columns, seed)

    @torch.no_grad()
    def _undo_isometries_(
        self,
        out_widths: Sequence[int],
        tower_dims: Sequence[Sequence[int]],
        columns: Sequence[Sequence[int]],
        seed: int,
    ) -> None:
        if list(map(sum, columns)) != list(out_widths) or list(map(len, columns)) != list(map(len, tower_dims)):
            raise InputError(f"columns {columns} are not those that arrive, {tuple(out_widths)}")
        if not self.weight.is_meta:
            towers = zip(tower_dims, columns, strict=True)
            self.weight.copy_(torch.block_diag(*(isometry(dims, own, seed).T for dims, own in towers)))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` ``[N, sum(out_widths)]`` to ``[N, sum of all dims]``, of its dtype under autocast, too."""
        return super().forward(x).to(x.dtype)
