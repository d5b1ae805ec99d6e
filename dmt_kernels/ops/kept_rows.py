"""Pooled rows that a forward pass of tower modules keeps for its backward pass: when, and their products."""

from __future__ import annotations

import torch
from torch import Tensor

from dmt_kernels.ops.tower_pool_gradients import ProductDtype

_LEAST_ROWS = 4096  # kLeastLibraryRows of csrc/ops/tower_pool_cuda.cu, whose choice this is


def is_for_library(weight: Tensor, rows: int, product_dtype: ProductDtype) -> bool:
    """Whether products of `rows` pooled rows and `weight` ``[C, D]`` are torch's, of rows in memory.

    Where they are, and `weight` needs a gradient, pooled rows are kept: rows of 16 bits are written and read again
    sooner than they are looked up twice (docs/gpu.md).
    """
    return weight.is_cuda and product_dtype is torch.bfloat16 and rows >= _LEAST_ROWS and weight.numel() > 0


def rounded_product(a: Tensor, b: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """Compute ``a @ b + bias``, rounded once.

    Parameters
    ----------
    a, b : Tensor [N, K], [K, M], bfloat16
    dtype : torch.dtype
        Of the result: float32, float16 or bfloat16.
    bias : Tensor [M], optional
        Of any of them.

    Returns
    -------
    Tensor [N, M]
    """
    if a.is_cuda:  # asked for its dtype, torch neither rounds in between nor heeds torch.autocast
        is_whole = bias is None and dtype is not torch.float16
        sums = torch.mm(a, b, out_dtype=dtype if is_whole else torch.float32)
    else:
        with torch.autocast("cpu", enabled=False):
            sums = a.float() @ b.float()
    if bias is None:
        return sums.to(dtype)
    return torch.add(sums, bias, out=sums if sums.dtype is dtype else torch.empty_like(sums, dtype=dtype))
