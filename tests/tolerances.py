"""The one table of tolerances: how far two right results of a dtype may be apart.

Both keep sums in float32 (float64 for float64) and round once, so float16 and bfloat16 differ by at most a unit in the
last place.
"""

import torch

TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2**-10, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5},
}


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Fail with the coordinates of the largest difference beyond the tolerance of their dtype."""
    torch.testing.assert_close(actual, expected, **TOLERANCES[expected.dtype])
