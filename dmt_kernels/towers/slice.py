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
        If the module cannot be cut, or shares parameters within itself.
    """

    def __init__(self, module: TowerModule, columns: Sequence[int], *, has_bias: bool) -> None:
        super().__init__()
        if (axes := module.column_axes()) is None:
            raise InputError(f"tower module {type(module).__name__} cannot be cut into slices by its input columns")
        self._axes, self._columns, self._has_bias = axes, torch.tensor(columns, dtype=torch.int64), has_bias
        parameters = dict(module.named_parameters())
        if len(parameters) < len(list(module.named_parameters(remove_duplicate=False))):
            raise InputError(f"tower module {type(module).__name__} shares parameters, and cannot be cut into slices")
        self._whole = {name: value.shape for name, value in _tensors(module).items()}
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
        held = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        whole = {name: held[name].new_zeros(shape) for name, shape in self._whole.items()}
        for name, value in _tensors(self.module).items():
            if name in self._axes:
                whole[name].index_copy_(self._axes[name], self._columns.to(value.device), value)
            elif self._has_bias:
                whole[name].copy_(value)
        return whole

    @torch.no_grad()
    def take(self, whole: Mapping[str, Tensor]) -> None:
        """Take the own values out of the whole module's state."""
        for name, value in _tensors(self.module).items():
            value.copy_(self._part_of(name, whole[name]))

    def _part_of(self, name: str, whole: Tensor) -> Tensor:
        if name not in self._axes:
            return whole
        return whole.index_select(self._axes[name], self._columns.to(whole.device))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers; not what else a module may keep in its state."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
