"""Dot products of pairs of features, as in DLRM: ``torch.ops.dmt.dot_interaction``, with fakes and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmt_kernels.ops._composition import implement_on
from dmt_kernels.ops._direct import differentiable, differentiable_once
from dmt_kernels.ops.bag_gradients import shaped_like_inputs
from dmt_kernels.ops.reference import dot_interaction as reference


def dot_interaction(blocks: Sequence[Tensor], dim: int, *, with_first: bool = False) -> Tensor:
    """Multiply every feature by every other one, sample by sample.

    N samples, F features, which lie side by side in one or more blocks: neither need they be put into one tensor
    before, nor the products behind what else goes into the next layer.

    Parameters
    ----------
    blocks : sequence of Tensor [N, F_i * dim]
        At least one; float64, float32, float16 or bfloat16, all of one dtype. Columns should be adjacent in memory, or
        are copied; rows need not be.
    dim : int
        Columns of a feature.
    with_first : bool
        Whether the columns of the first block stand before the products.

    Returns
    -------
    Tensor [N, F * (F - 1) / 2], or with the first block's columns before them
        Features (1, 0), (2, 0), (2, 1), ...: summed in float32 (float64 for float64) in the order of the columns,
        rounded once, independent of the number of threads. Differentiable once in `blocks`.

    Raises
    ------
    RuntimeError
        Shapes or dtypes that do not fit.
    """
    if not blocks:  # without a tensor nobody would know where to run
        raise RuntimeError("dot_interaction: blocks must not be empty")
    return _call(list(blocks), dim, with_first)


@torch.library.register_fake("dmt::dot_interaction")
def _(blocks: Sequence[Tensor], dim: int, with_first: bool = False) -> Tensor:
    features = sum(block.shape[1] for block in blocks) // dim
    return blocks[0].new_empty(
        blocks[0].shape[0], features * (features - 1) // 2 + (blocks[0].shape[1] if with_first else 0)
    )


@torch.library.register_fake("dmt::dot_interaction_backward")
def _(grad: Tensor, blocks: Sequence[Tensor], dim: int, with_first: bool = False) -> list[Tensor]:
    return [block.new_empty(block.shape) for block in blocks]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    blocks, ctx.dim, ctx.with_first = inputs
    ctx.save_for_backward(*blocks)


def _backward(ctx: Any, grad: Tensor, needed: Sequence[Any]) -> tuple[Any, ...]:
    grads = torch.ops.dmt.dot_interaction_backward(grad, list(ctx.saved_tensors), ctx.dim, ctx.with_first)
    return shaped_like_inputs((grads, None, None), needed)


_call = differentiable(torch.ops.dmt.dot_interaction.default, _setup_context, _backward)
differentiable_once("dot_interaction", "dot_interaction_backward")

# There is no kernel for CUDA: the oracle multiplies matrices of all samples at once.
for _name in ("dot_interaction", "dot_interaction_backward"):
    implement_on("CUDA", _name, getattr(reference, _name))
