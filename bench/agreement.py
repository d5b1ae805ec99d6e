"""No time without the right result: what must agree, and how closely."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to the value, and absolute in units of the largest value expected: sums are made in different orders.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}


class Disagreement(Exception):
    """Two results that should be the same are not; the message says which and by how much."""


def agree(
    what: str, actual: Tensor, expected: Tensor, *, exact: bool = False, products: torch.dtype = torch.float64
) -> None:
    """Raise :class:`Disagreement` unless `actual` is `expected`, to the coarsest tolerance of the dtypes.

    `products`: what factors were rounded to, if to less than the results.
    """
    if exact:
        if not torch.equal(actual, expected):
            raise Disagreement(f"{what}: not the same bits")
        return
    rtol, scaled = max(TOLERANCES[dtype] for dtype in (actual.dtype, expected.dtype, products))
    atol = scaled * float(expected.abs().max()) if expected.numel() else 0.0
    try:
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, check_dtype=False)
    except AssertionError as error:
        raise Disagreement(f"{what}: {' '.join(str(error).split())}") from None
