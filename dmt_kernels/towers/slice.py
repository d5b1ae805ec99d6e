"""A linear tower module in pieces: the columns that one member looks up, and perhaps the bias."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dmt_kernels.spec import InputError
from dmt_kernels.towers.base import TowerModule


class TowerSlice(nn.Module):
    """Parameters and buffers of some input columns of a linear tower module.

    Slices that share out all columns, one of them with the bias, add up to the module, whose values they start from.

    Parameters
    ----------
    module : TowerModule
        The whole. It stays as it is.
    columns : sequence of int
        Input columns of the slice, in the order in which it will find them.
    has_bias : bool
        Whether the slice holds the bias, too.

    Raises
    ------
    InputError
        If the module cannot be cut.
    """

    def __init__(self, module: TowerModule, columns: Sequence[int], *, has_bias: bool) -> None:
        super().__init__()
        if (axes := module.column_axes()) is None:
            raise InputError(f"tower module {type(module).__name__} cannot be cut into slices by its input columns")
        self._axes, self._columns, self._has_bias = axes, torch.tensor(columns, dtype=torch.int64), has_bias
        parameters = dict(module.named_parameters())
        self._whole = {name: (value.shape, value.dtype) for name, value in module.state_dict().items()}
        self.module = copy.deepcopy(module)
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            path, _, last = name.rpartition(".")
            owner = self.module.get_submodule(path)
            if name in axes:
                part = self._part_of(name, value.detach())
                setattr(owner, last, nn.Parameter(part, value.requires_grad) if name in parameters else part)
            elif name in parameters and not has_bias:
                delattr(owner, last)
                owner.register_buffer(last, torch.zeros_like(value), persistent=False)

    def weight_bias(self) -> tuple[Tensor, Tensor | None]:
        """Return weight ``[out_width, len(columns)]`` and bias ``[out_width]`` or None, differentiable."""
        linear = self.module.linear_weight_bias()
        assert linear is not None
        return linear[0], linear[1] if self._has_bias else None

    @torch.no_grad()
    def spread(self) -> dict[str, Tensor]:
        """Return the whole module's state, 0 where another slice has the value: slices add up to it."""
        own = self.module.state_dict()
        device = next(iter(own.values())).device
        whole = {name: torch.zeros(shape, dtype=dtype, device=device) for name, (shape, dtype) in self._whole.items()}
        for name, value in own.items():
            if name in self._axes:
                whole[name].index_copy_(self._axes[name], self._columns.to(device), value)
            elif self._has_bias:
                whole[name].copy_(value)
        return whole

    @torch.no_grad()
    def take(self, whole: Mapping[str, Tensor]) -> None:
        """Take the own values out of the whole module's state."""
        for name, value in self.module.state_dict().items():
            value.copy_(self._part_of(name, whole[name]))

    def _part_of(self, name: str, whole: Tensor) -> Tensor:
        if name not in self._axes:
            return whole
        return whole.index_select(self._axes[name], self._columns.to(whole.device))
