"""Pairwise dot products of features, as in DLRM (Naumov et al., arXiv 1906.00091)."""

import torch
from torch import Tensor, nn


class DotInteraction(nn.Module):
    """Dot products of all pairs of different features.

    Parameters
    ----------
    features : int
        Number of features ``F``.

    Attributes
    ----------
    out_width : int
        Number of pairs, ``F * (F - 1) / 2``.
    """

    pairs: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        rows, cols = torch.tril_indices(features, features, offset=-1)
        # One flat index: selecting with two is several times slower in the backward on a CPU.
        self.register_buffer("pairs", rows * features + cols, persistent=False)
        self.out_width = len(self.pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the features of ``x`` ``[N, F, D]``: ``[N, F * (F - 1) / 2]``, pairs (1, 0), (2, 0), (2, 1), ..."""
        products = torch.bmm(x, x.transpose(1, 2))
        return products.flatten(1).index_select(1, self.pairs)
