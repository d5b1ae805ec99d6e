"""Oracle of `dot_interaction`: what one writes in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dot_interaction(blocks: Sequence[Tensor], dim: int, with_first: bool = False) -> Tensor:
    """Multiply every feature by every earlier one; see `dmt_kernels.ops.dot_interaction`."""
    x = torch.cat(list(blocks), dim=1).unflatten(1, (-1, dim))  # [N, F, dim]
    rows, columns = torch.tril_indices(x.shape[1], x.shape[1], offset=-1, device=x.device)
    pairs = torch.bmm(x, x.transpose(1, 2))[:, rows, columns]
    return torch.cat([blocks[0], pairs], dim=1) if with_first else pairs


def dot_interaction_backward(
    grad: Tensor, blocks: Sequence[Tensor], dim: int, with_first: bool = False
) -> list[Tensor]:
    """Gradients of the blocks: a pair's gradient goes to both of its features."""
    widths = [block.shape[1] for block in blocks]
    x = torch.cat(list(blocks), dim=1).unflatten(1, (-1, dim))
    kept = widths[0] if with_first else 0
    rows, columns = torch.tril_indices(x.shape[1], x.shape[1], offset=-1, device=x.device)
    of_products = grad.new_zeros(x.shape[0], x.shape[1], x.shape[1])
    of_products[:, rows, columns] = of_products[:, columns, rows] = grad[:, kept:]
    grads = list(torch.bmm(of_products, x).flatten(1).split(widths, dim=1))
    if with_first:
        grads[0] = grads[0] + grad[:, :kept]
    return [block_grad.contiguous() for block_grad in grads]
