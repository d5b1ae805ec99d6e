"""What happens between the stages, chunk by chunk: forward on what arrived, backward by hand.

Autograd alone would run the chunks of a backward pass one after the other with their messages; here the schedule
decides (:mod:`dmt_kernels.embedding.flight`). Letters: ``N`` rows of a chunk (``T * b``), ``D_m`` width of block ``m``:
a member's columns or, last, those of replicated tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.embedding.column_layout import TowerLayout
from dmt_kernels.ops.bag_arguments import on_device
from dmt_kernels.towers import PassThrough, TowerModule


class TowerStep(ABC):
    """A tower module during one step.

    Attributes
    ----------
    inputs : tuple of Tensor
        What the module's output depends on besides the blocks. Autograd takes their gradients from here.
    """

    inputs: tuple[Tensor, ...] = ()

    @abstractmethod
    def forward(self, blocks: Sequence[Tensor], out: Tensor) -> None:
        """Write ``[N, C_t]`` of the next chunk, given its blocks ``[N, D_m]``."""

    @abstractmethod
    def backward(self, chunk: int, grad: Tensor, blocks: Sequence[Tensor]) -> None:
        """Write the gradients of a chunk's blocks, given that of its output."""

    def backward_inputs(self, chunk: int, grad: Tensor) -> None:  # noqa: B027  (nothing to do where there are none)
        """Add what the chunk contributes to the gradients of ``inputs``; called after :meth:`backward`."""

    def input_grads(self) -> tuple[Tensor | None, ...]:
        """The gradients of ``inputs``, summed over the chunks since the last call."""
        return ()


def tower_step(module: TowerModule | None, layout: TowerLayout) -> TowerStep:
    """Take the shortest way through a module; None passes through."""
    if module is None or isinstance(module, PassThrough):
        return _PassStep(layout)
    linear = module.linear_weight_bias()
    if linear is None:
        return _ModuleStep(module, layout)
    narrow = product_dtype(linear[0])
    return _LinearStep(*linear, layout) if narrow is None else _NarrowLinearStep(*linear, layout, narrow)


def product_dtype(weight: Tensor) -> torch.dtype | None:
    """What factors are rounded to where ``torch.autocast`` is in force; None: they stay as they are.

    As in autocast's own layers, float64 stays.
    """
    device = weight.device.type
    narrow = torch.is_autocast_enabled(device) and weight.dtype is not torch.float64
    return torch.get_autocast_dtype(device) if narrow else None


class _PassStep(TowerStep):
    def __init__(self, layout: TowerLayout) -> None:
        self.layout = layout

    def forward(self, blocks: Sequence[Tensor], out: Tensor) -> None:
        self.layout.assemble(blocks, out)

    def backward(self, chunk: int, grad: Tensor, blocks: Sequence[Tensor]) -> None:
        self.layout.scatter(grad, blocks)


class _LinearStep(TowerStep):
    """A sum of one product per block: blocks are read where they arrived, and nothing is shuffled but the weight."""

    def __init__(self, weight: Tensor, bias: Tensor, layout: TowerLayout) -> None:
        widths = [*layout.sent_widths, layout.kept_width]
        by_block = weight
        if not layout.is_side_by_side:
            by_block = weight.index_select(1, on_device(tuple(layout.columns_of_blocks), weight.device))
        self.inputs = (by_block, bias)
        self.weights = by_block.detach().split(widths, dim=1)
        self.bias = bias.detach()
        self._blocks: list[Sequence[Tensor]] = []
        self._weight_grads: list[Tensor] = []
        self._bias_grad: Tensor | None = None

    def forward(self, blocks: Sequence[Tensor], out: Tensor) -> None:
        self._blocks.append(blocks)
        so_far = self.bias
        for block, weight in zip(blocks, self.weights, strict=True):
            if weight.shape[1]:
                torch.addmm(so_far, block, weight.t(), out=out)
                so_far = out

    def backward(self, chunk: int, grad: Tensor, blocks: Sequence[Tensor]) -> None:
        for block, weight in zip(blocks, self.weights, strict=True):
            if weight.shape[1]:
                torch.mm(grad, weight, out=block)

    def backward_inputs(self, chunk: int, grad: Tensor) -> None:
        if not any(value.requires_grad for value in self.inputs):  # frozen
            return
        grads = self._grads_of_weights(grad, self._blocks[chunk])
        bias_grad = grad.sum(0)
        if self._bias_grad is None:
            self._weight_grads, self._bias_grad = grads, bias_grad
            return
        for total, more in zip((*self._weight_grads, self._bias_grad), (*grads, bias_grad), strict=True):
            total += more

    def input_grads(self) -> tuple[Tensor | None, ...]:
        bias_grad, self._bias_grad = self._bias_grad, None
        if bias_grad is None:
            return None, None
        return torch.cat(self._weight_grads, dim=1), bias_grad

    def _grads_of_weights(self, grad: Tensor, blocks: Sequence[Tensor]) -> list[Tensor]:
        return [torch.mm(grad.t(), block) for block in blocks]


class _NarrowLinearStep(_LinearStep):
    """The same with factors and products of blocks rounded to a narrow dtype; sums over blocks and chunks are not."""

    def __init__(self, weight: Tensor, bias: Tensor, layout: TowerLayout, narrow: torch.dtype) -> None:
        super().__init__(weight, bias, layout)
        self.weights = tuple(part.to(narrow) for part in self.weights)
        self._narrow = narrow

    def forward(self, blocks: Sequence[Tensor], out: Tensor) -> None:
        factors = [block.to(self._narrow) for block in blocks]
        self._blocks.append(factors)
        out.copy_(self.bias)
        for factor, weight in zip(factors, self.weights, strict=True):
            out += torch.mm(factor, weight.t())

    def backward(self, chunk: int, grad: Tensor, blocks: Sequence[Tensor]) -> None:
        factor = grad.to(self._narrow)
        for block, weight in zip(blocks, self.weights, strict=True):
            block.copy_(torch.mm(factor, weight))

    def _grads_of_weights(self, grad: Tensor, blocks: Sequence[Tensor]) -> list[Tensor]:
        factor = grad.to(self._narrow).t()
        return [torch.mm(factor, block).to(grad.dtype) for block in blocks]


class _ModuleStep(TowerStep):
    """Any module, by autograd on detached leaves."""

    def __init__(self, module: TowerModule, layout: TowerLayout) -> None:
        self.module, self.layout = module, layout
        self.inputs = tuple(p for p in module.parameters() if p.requires_grad)
        self._records = torch.is_grad_enabled()
        self._chunks: dict[int, tuple[Tensor, Tensor]] = {}
        self._grads: list[Tensor | None] = [None] * len(self.inputs)

    def forward(self, blocks: Sequence[Tensor], out: Tensor) -> None:
        x = self.layout.assemble(blocks)
        with torch.set_grad_enabled(self._records):
            y = self.module(x.requires_grad_(self._records)).to(out.dtype)  # autocast's layers give a narrow one
        if self._records:
            self._chunks[len(self._chunks)] = x, y
        out.copy_(y.detach())

    def backward(self, chunk: int, grad: Tensor, blocks: Sequence[Tensor]) -> None:
        x, out = self._chunks.pop(chunk)  # what autograd keeps of a chunk goes with it
        x_grad, *grads = torch.autograd.grad(out, (x, *self.inputs), grad, allow_unused=True)
        self.layout.scatter(torch.zeros_like(x) if x_grad is None else x_grad, blocks)
        for i, more in enumerate(grads):
            total = self._grads[i]
            self._grads[i] = more if total is None else total if more is None else total + more

    def input_grads(self) -> tuple[Tensor | None, ...]:
        grads, self._grads = self._grads, [None] * len(self.inputs)
        return tuple(grads)
