"""The CUDA kernels on the CPU: ``torch.ops.dmt_simt.*`` (tests/simt), which `make test` builds beside the C++ tests."""

from pathlib import Path

import pytest
import torch

_LIBRARY = Path(__file__).parents[2] / "build" / "tests" / "libdmt_simt.so"
needs_simt = pytest.mark.skipif(
    not _LIBRARY.exists(), reason="build/tests has no libdmt_simt.so; `make test` builds it"
)

if _LIBRARY.exists():
    import dmt_kernels.ops  # noqa: F401  (torch's libraries and ours are there first)

    torch.ops.load_library(str(_LIBRARY))


def op(name: str):
    return getattr(torch.ops.dmt_simt, name).default


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal in every bit, but for what a NaN looks like and the sign of a zero."""
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
