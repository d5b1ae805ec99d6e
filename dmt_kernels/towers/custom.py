"""A module of the user's between the stages."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dmt_kernels.spec import InputError
from dmt_kernels.towers.base import TowerModule


class CustomTower(TowerModule):
    """Any per-sample module that maps ``[N, D_t]`` to ``[N, C]``.

    The module is tried on a few random rows, in its training and in its evaluation form, on a copy. Its parameters stay
    as they are: all ranks of a tower must hand over the same values (:func:`~dmt_kernels.towers.seeded_rng` helps).

    Parameters
    ----------
    module : nn.Module
        The user's.
    dims : sequence of int
        Embedding dim of every feature of the tower.

    Raises
    ------
    InputError
        If the module fails on ``[N, D_t]``, does not return a floating ``[N, C]``, keeps batch statistics, or treats a
        row differently depending on the rows around it.
    """

    def __init__(self, module: nn.Module, dims: Sequence[int]) -> None:
        _refuse_batch_statistics(module)
        out_width, writes = _try_rows(module, sum(dims))
        super().__init__(dims, out_width)
        self.module, self._writes = module, writes

    def forward(self, x: Tensor) -> Tensor:
        """Apply the user's module to ``x`` ``[N, D_t]``: ``[N, out_width]``."""
        return self.module(x.clone() if self._writes else x)  # on ranks, x is a leaf that requires a gradient


def _refuse_batch_statistics(module: nn.Module) -> None:
    for path, part in module.named_modules():
        keeps_running = isinstance(part, _InstanceNorm) and part.track_running_stats
        if isinstance(part, _BatchNorm) or keeps_running:
            where = f"{path!r} of " if path else ""
            raise InputError(
                f"{where}tower module {type(module).__name__} is a {type(part).__name__}, whose batch statistics make "
                "a row depend on the rows around it; use LayerNorm or another per-sample norm"
            )


def _try_rows(module: nn.Module, in_width: int) -> tuple[int, bool]:
    """Return the output width, and whether the input is written to; rows do not depend on each other."""
    name = type(module).__name__
    like = next(module.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, in_width, generator=generator, dtype=torch.float64, device="cpu").to(like)
    width, writes = 0, False
    for training in (True, False):
        trial = copy.deepcopy(module).train(training)
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng():
            try:
                inputs = x.clone(), x.clone(), x[:2].clone()
                before = inputs[0]._version  # writes count, whatever they write
                whole, again, part = map(trial, inputs)
                writes |= inputs[0]._version != before
            except Exception as error:
                raise InputError(f"tower module {name} fails on an input of shape [5, {in_width}]: {error}") from error
        if not isinstance(whole, Tensor) or whole.dim() != 2 or len(whole) != len(x) or not whole.is_floating_point():
            got = f"{whole.dtype} {list(whole.shape)}" if isinstance(whole, Tensor) else type(whole).__name__
            raise InputError(f"tower module {name} must return a floating [5, C] for [5, {in_width}], not {got}")
        # Dropout makes two runs differ; then the comparison says nothing and that of the evaluation form decides.
        if torch.equal(whole, again) and not torch.allclose(whole[:2], part, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise InputError(f"tower module {name} is not per-sample: a row's output changes with the rows around it")
        width = whole.shape[1]
    return width, writes
