"""What every tower module is."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from dmt_kernels.spec import InputError


class TowerModule(nn.Module):
    """A per-sample dense module between the two stages of the exchange.

    ``forward`` maps the tower's pooled embeddings ``[N, in_width]``, features side by side, to
    ``[N, out_width]``. Row ``n`` of the output depends on row ``n`` of the input alone: rows of
    different ranks and chunks of a batch meet in one call, and which do is not part of the model.

    Parameters
    ----------
    dims : sequence of int
        Embedding dim of every feature of the tower.
    out_width : int
        Columns of the output: what one sample costs on the slow links.

    Attributes
    ----------
    dims : tuple of int
        As given.
    in_width, out_width : int
        ``D_t = sum(dims)`` and ``C_t``.

    Raises
    ------
    InputError
        If there is no feature, or a dim or the width is below 1.
    """

    def __init__(self, dims: Sequence[int], out_width: int) -> None:
        super().__init__()
        if not dims or min(dims) < 1 or out_width < 1:
            raise InputError(f"a tower module needs positive widths, not dims {tuple(dims)} and output {out_width}")
        self.dims = tuple(dims)
        self.in_width = sum(self.dims)
        self.out_width = out_width

    def linear_weight_bias(self) -> tuple[Tensor, Tensor] | None:
        """Return the module as one linear map, or None if it is not linear.

        Returns
        -------
        tuple of Tensor, or None
            Weight ``[out_width, in_width]`` and bias ``[out_width]``, differentiable functions of the
            parameters: ``forward(x) == x @ weight.T + bias`` to rounding. None also for pass-through,
            where a product would be a waste.
        """
        return None

    def column_axes(self) -> Mapping[str, int] | None:
        """Say how a linear module is cut into slices by input columns; None: it cannot be.

        Returns
        -------
        mapping of str to int, or None
            Names of the parameters and buffers that have an entry per input column, and along which axis. All other
            parameters make up the bias. With some of those entries alone, :meth:`linear_weight_bias` has to give
            their columns.
        """
        return None

    def extra_repr(self) -> str:
        """Show the widths."""
        return f"features={len(self.dims)}, in_width={self.in_width}, out_width={self.out_width}"
