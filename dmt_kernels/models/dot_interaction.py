"""Pairwise dot products of features, as in DLRM (Naumov et al., arXiv 1906.00091)."""

from torch import Tensor, nn

from dmt_kernels import ops


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

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_width = features * (features - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the features of ``x`` ``[N, F, D]``: ``[N, F * (F - 1) / 2]``, pairs (1, 0), (2, 0), (2, 1), ..."""
        return ops.dot_interaction([x.flatten(1)], x.shape[2])

    def behind(self, first: Tensor, others: Tensor, dim: int) -> Tensor:
        """Multiply the features ``[N, f * dim]`` and the others ``[N, (F - f) * dim]``; the first stand before it."""
        return ops.dot_interaction([first.to(others.dtype), others], dim, with_first=True)
