"""The linear tower module for models that take dot products of features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmt_kernels.spec import InputError
from dmt_kernels.towers.base import TowerModule
from dmt_kernels.towers.init import init_parameters_, start_isometric_, uniform_


class DLRMTower(TowerModule):
    """An ensemble of two projections, as in DMT (Luo et al., MLSys 2024).

    One projection sees the flattened tower and gives ``c`` output features; the other sees one
    feature at a time, with weights of that feature's own, and gives ``p`` output features for each.
    Output columns: the ``c`` features, then the ``p`` features of input feature 0, of 1, and so on,
    each ``out_dim`` wide.

    Parameters
    ----------
    dims : sequence of int
        Embedding dim of every feature of the tower; they may differ.
    out_dim : int
        Width of an output feature.
    c, p : int
        Output features of the tower and of each input feature; not both 0.
    columns : sequence of int, optional
        The projection of the flattened tower starts as an isometry in which features have so many of its columns to
        themselves, ``c * out_dim`` together, times a factor (:func:`~dmt_kernels.towers.init.start_isometric_`). With
        ``c == F_t`` and `out_dim` for each, output feature f starts as `out_dim` orthogonal combinations of input
        feature f alone. None: it starts with all features mixed.
    seed, name : int, str
        Initial values: see :mod:`dmt_kernels.towers.init`.

    Attributes
    ----------
    tower : nn.Linear or None
        The projection of the flattened tower, ``[c * out_dim, D_t]``; None if ``c == 0``.
    feature_weight, feature_bias : nn.Parameter or None
        ``[D_t, p * out_dim]``, in whose rows lies one matrix ``[dim, p * out_dim]`` per feature, and
        ``[F_t, p * out_dim]``; None if ``p == 0``.

    Raises
    ------
    InputError
        For bad widths or columns, or when ``c`` or ``p`` is negative or both are 0.
    """

    feature_columns: Tensor

    def __init__(
        self,
        dims: Sequence[int],
        out_dim: int,
        c: int,
        p: int,
        *,
        columns: Sequence[int] | None = None,
        seed: int = 0,
        name: str = "tower",
    ) -> None:
        if min(c, p) < 0 or c + p == 0:
            raise InputError(f"a DLRM tower module needs c and p of at least 0 and not both 0, not c={c} and p={p}")
        super().__init__(dims, (c + p * len(dims)) * out_dim)
        self.out_dim, self.c, self.p = out_dim, c, p
        self.tower = nn.Linear(self.in_width, c * out_dim) if c else None
        self.feature_weight = nn.Parameter(torch.empty(self.in_width, p * out_dim)) if p else None
        self.feature_bias = nn.Parameter(torch.zeros(len(dims), p * out_dim)) if p else None
        if p:  # which columns are which feature's, [F_t, D_t]
            own = torch.block_diag(*(torch.ones(1, dim) for dim in dims)).bool()
            self.register_buffer("feature_columns", own, persistent=False)
        self._init_parameters_(seed, name)
        if columns is not None and self.tower is not None:
            start_isometric_(self.tower.weight, self.dims, columns, seed)

    def _init_parameters_(self, seed: int, name: str) -> None:
        if self.tower is not None:
            init_parameters_(self.tower, seed, f"{name}.tower")
        if self.feature_weight is not None:
            # A feature's matrix has the fans of its own, not those of the packed parameter.
            for f, block in enumerate(self.feature_weight.detach().split(self.dims)):
                uniform_(block, math.sqrt(6 / sum(block.shape)), seed, f"{name}.feature_weight.{f}")

    def forward(self, x: Tensor) -> Tensor:
        """Project ``x`` ``[N, D_t]`` to ``[N, (c + p * F_t) * out_dim]``."""
        outputs = [] if self.tower is None else [self.tower(x)]
        if self.feature_weight is not None and self.feature_bias is not None:
            outputs.append(self._project_features(x, self.feature_weight, self.feature_bias))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _project_features(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Multiply every feature of ``x`` ``[N, D_t]`` by its own matrix: ``[N, F_t * p * out_dim]``."""
        features = len(self.dims)
        if len(set(self.dims)) > 1:
            return functional.linear(x, self._block_diagonal(weight), bias.flatten())
        per_feature = x.unflatten(1, (features, self.dims[0])).transpose(0, 1)  # [F_t, N, dim]
        out = torch.baddbmm(bias.unsqueeze(1), per_feature, weight.view(features, self.dims[0], -1))
        return out.transpose(0, 1).flatten(1)

    def _block_diagonal(self, weight: Tensor) -> Tensor:
        """Spread the packed matrices ``[D_t, p * out_dim]`` over ``[F_t * p * out_dim, D_t]``, 0 elsewhere."""
        return torch.where(self.feature_columns.unsqueeze(1), weight.t(), 0.0).flatten(0, 1)

    def linear_weight_bias(self) -> tuple[Tensor, Tensor]:
        """Return weight ``[out_width, D_t]`` and bias ``[out_width]`` of the same map, for fusing."""
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        if self.tower is not None:
            weights.append(self.tower.weight)
            biases.append(self.tower.bias)
        if self.feature_weight is not None and self.feature_bias is not None:
            weights.append(self._block_diagonal(self.feature_weight))
            biases.append(self.feature_bias.flatten())
        return torch.cat(weights), torch.cat(biases)

    def column_axes(self) -> dict[str, int]:
        """Both projections are sums over input columns."""
        return {
            **({} if self.tower is None else {"tower.weight": 1}),
            **({} if self.feature_weight is None else {"feature_weight": 0, "feature_columns": 1}),
        }
