"""Fully connected layers."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with a ReLU after each, or after each but the last.

    Parameters
    ----------
    in_width : int
        Columns of the input.
    widths : sequence of int
        Output columns of every layer; empty: the module returns its input.
    last_relu : bool
        Whether the last layer has a ReLU too.

    Attributes
    ----------
    out_width : int
        Columns of the output.
    """

    def __init__(self, in_width: int, widths: Sequence[int], *, last_relu: bool) -> None:
        super().__init__()
        ends = [in_width, *widths]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(ends))
        self.last_relu = last_relu
        self.out_width = ends[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` ``[N, in_width]`` to ``[N, out_width]``."""
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.last_relu or i + 1 < len(self.layers):
                x = x.relu()
        return x
