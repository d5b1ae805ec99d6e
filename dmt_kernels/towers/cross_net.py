"""The cross network of DCN-v2 (Wang et al., WWW 2021)."""

from torch import Tensor, nn

from dmt_kernels.spec import InputError


class CrossNet(nn.Module):
    """Explicit feature crosses: ``x[l + 1] = x[0] * (W[l] x[l] + b[l]) + x[l]``.

    Parameters
    ----------
    width : int
        Columns of the input, and of the output.
    layers : int
        Number of crosses.
    rank : int or None
        Rank of ``W[l] = U[l] V[l]``, ``U`` ``[width, rank]``; None: full matrices.

    Raises
    ------
    InputError
        If there is no layer, or the rank is not in ``[1, width]``.
    """

    def __init__(self, width: int, layers: int, *, rank: int | None = None) -> None:
        super().__init__()
        if layers < 1:
            raise InputError(f"a cross net needs at least 1 layer, not {layers}")
        if rank is not None and not 1 <= rank <= width:
            raise InputError(f"the rank of a cross net of width {width} must lie in [1, {width}], not {rank}")
        self.layers = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(layers)
        )

    def forward(self, x0: Tensor) -> Tensor:
        """Cross ``x0`` ``[N, width]`` with itself: ``[N, width]``."""
        x = x0
        for layer in self.layers:
            x = x0 * layer(x) + x
        return x
