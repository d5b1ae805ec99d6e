"""Stochastic rounding of the wire formats: right on average, and as good as independent."""

import pytest
import torch

from dmt_kernels.ops import wire_decode, wire_encode
from dmt_kernels.ops.reference.wire_codec import random_words
from dmt_kernels.spec import WireFormat

FORMATS = [f for f in WireFormat if f is not WireFormat.FP32]
formats = pytest.mark.parametrize("wire_format", FORMATS, ids=lambda f: f.value)
DRAWS = 20_000
SIGMAS = 5.5  # of several hundred means, none is further off by chance

# One row: its maximum, then fractions of a unit in the last place, of both signs and from normal to denormal.
ROW = [
    225.0,
    200.1,
    -17.3,
    17.3,
    3.0001,
    1.0,
    -0.7,
    0.011,
    2**-9,
    -(2**-10),
    2**-11,
    3e-4,
    1e-5,
    -3e-6,
    1e-7,
    2**-33,
    0,
]


def draws(wire_format, varying):
    """``[DRAWS, len(ROW)]``: the row rounded anew by rows, seeds or steps."""
    x = torch.tensor([ROW], dtype=torch.float32)
    if varying == "rows":
        message = wire_encode(x.expand(DRAWS, -1), wire_format, seed=1)
    else:
        message = torch.cat([wire_encode(x, wire_format, **{"seed": 1, varying: i}) for i in range(DRAWS)])
    return x.double(), wire_decode(message, len(ROW), wire_format, torch.float64)


@formats
@pytest.mark.parametrize("varying", ["rows", "seed", "step"])
def test_the_mean_is_the_number(wire_format, varying):
    x, decoded = draws(wire_format, varying)
    bound = wire_format.error_bound(stochastic=True)
    step = bound.of_value * x[0].abs() + bound.of_maximum * x.max()  # between two payloads
    deviation = torch.minimum(step / 2, (x[0].abs() * step).sqrt())  # of a number that is one of two
    # Payloads that come up less than once in a thousand times are another test's.
    off = (decoded.mean(0) - x[0]).abs()
    assert (off <= SIGMAS * deviation / DRAWS**0.5 + 10 * step / DRAWS).all()
    assert (decoded.std(0) > 0).sum() >= 7, "most of the row lies between two payloads"


@pytest.mark.parametrize(
    ("wire_format", "row"),
    # A maximum, and what is 2**-16 of a step above a payload.
    [("bf16", [1, 1 + 2**-23]), ("fp16", [2**14, 2**-40]), ("fp8", [448, 2**-25]), ("int8", [127, 2**-16])],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_small_fractions_are_not_lost(wire_format, row):
    rows, columns = 2**14, 2**8
    x = torch.full((rows, columns + 1), row[1])
    x[:, 0] = row[0]
    ups = (wire_decode(wire_encode(x, wire_format, seed=6), columns + 1, wire_format)[:, 1:] > row[1]).sum()
    expected = rows * columns / 2**16
    assert abs(ups - expected) < SIGMAS * expected**0.5


@formats
def test_only_the_two_neighbours_occur(wire_format):
    x, decoded = draws(wire_format, "rows")
    for column, value in enumerate(x[0]):
        values = decoded[:, column].unique()
        assert len(values) <= 2
        if len(values) == 2:
            assert values[0] < value < values[1]


@formats
@pytest.mark.parametrize("neighbour", ["row", "column", "seed", "step", "message"])
def test_neighbours_are_rounded_independently(wire_format, neighbour):
    """The signs of their errors do not correlate."""
    rows, columns = 500, 200
    # In the middle between two payloads, whatever the format; the first one fixes the scale.
    middle = {"bf16": 1 + 2**-8, "fp16": 1 + 2**-11, "fp8": 17 / 16, "int8": 0.5 * 127 / 127}[wire_format.value]
    x = torch.full((rows, columns), middle)
    x[:, 0] = 127.0

    def ups(**options):
        options = {"seed": 11, "step": 3, **options}
        decoded = wire_decode(wire_encode(x, wire_format, **options), columns, wire_format)[:, 1:]
        return (decoded > middle).double() * 2 - 1

    here = ups()
    there = {
        "row": lambda: here[1:],
        "column": lambda: here[:, 1:],
        "seed": lambda: ups(seed=12),
        "step": lambda: ups(step=4),
        "message": lambda: ups(first_row=rows),
    }[neighbour]()
    product = here[: len(there), : there.shape[1]] * there
    assert abs(product.mean()) < SIGMAS / product.numel() ** 0.5
    assert abs(here.mean()) < SIGMAS / here.numel() ** 0.5


def test_the_random_words_are_uniform_in_every_byte():
    words = random_words(2, 0, 0, 300, 400).flatten()
    for shift in (0, 8, 16, 24):
        counts = ((words >> shift) & 0xFF).bincount(minlength=256).double()
        expected = len(words) / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_square - 255) < SIGMAS * (2 * 255) ** 0.5
    assert len(words.unique()) > 0.9999 * len(words)


def test_the_words_are_those_of_the_kernel():
    """A row of ones in the middle of two bfloat16s shows the leading bit."""
    x = torch.full((40, 100), 1 + 2**-8)
    up = wire_decode(wire_encode(x, "bf16", seed=-5, step=9, first_row=7), 100, "bf16") > x
    assert torch.equal(up, random_words(-5, 9, 7, 40, 100) >= 2**31)


def test_negative_and_large_counters_are_fine():
    x = torch.full((2, 20), 17 / 16)
    for options in ({"seed": -(2**63)}, {"seed": 0, "step": 2**63 - 1}, {"seed": 0, "first_row": 2**63 - 1}):
        assert wire_encode(x, "bf16", **options).shape == (2, 40)
