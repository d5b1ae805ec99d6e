"""Rows to send, for the tests of the wire formats."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from dmt_kernels.spec import ErrorBound

DIMS = [0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 65, 130]
# Ends of the floats, and of what the kernels treat apart (rows are lifted below 2**-60).
EXPONENTS = [-149, -145, -140, -130, -126, -119, -100, -61, -60, -20, 0, 1, 15, 40, 100, 120, 127]
SPECIALS = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 2.0**-149, -(2.0**-126), 3.4028234663852886e38, 65504.0, 448.0]


def random_rows(seed: int, rows: int, dim: int, exponent: int, spread: int, dtype: torch.dtype) -> Tensor:
    """Numbers of both signs with magnitudes from about 2**(exponent - spread) to 2**exponent."""
    generator = torch.Generator().manual_seed(seed)
    mantissas = torch.rand(rows, dim, generator=generator, dtype=torch.float64) * 2 - 1
    shrink = -spread * torch.rand(rows, dim, generator=generator, dtype=torch.float64)
    return (mantissas * torch.exp2(shrink + exponent)).to(dtype)


@st.composite
def wire_rows(draw, dtypes=(torch.float32,), finite=False):
    """Rows of any size and magnitude; unless `finite`, with special values, zeros among them, here and there."""
    rows, dim = draw(st.integers(0, 5)), draw(st.sampled_from(DIMS))
    spread = draw(st.sampled_from([0, 3, 20, 60]))
    dtype = draw(st.sampled_from(dtypes))
    x = random_rows(draw(st.integers(0, 2**20)), rows, dim, draw(st.sampled_from(EXPONENTS)), spread, dtype)
    if rows and dim:
        specials = [s for s in SPECIALS if not finite or abs(s) <= torch.finfo(torch.float32).max]
        places = st.tuples(st.integers(0, rows - 1), st.integers(0, dim - 1), st.sampled_from(specials))
        for row, column, value in draw(st.lists(places, max_size=4)):
            x[row, column] = value
        for row in draw(st.lists(st.integers(0, rows - 1), max_size=2)):
            x[row] = 0
    return x


def excess(x: Tensor, decoded: Tensor, bound: ErrorBound) -> float:
    """The largest error of `decoded`, as a multiple of what `bound` allows there."""
    x, decoded = x.double(), decoded.double()
    if not x.numel():
        return 0.0
    maximum = x.abs().amax(dim=1, keepdim=True)
    # In units of 2**-149, because the bounds of denormals would be rounded themselves.
    error = (decoded - x).abs() * 2.0**149
    allowed = (bound.of_value * x.abs() + bound.of_maximum * maximum) * 2.0**149 + bound.least * 2.0**149
    return float(torch.where(error == 0, 0.0, error / allowed).max())
