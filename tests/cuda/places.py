"""Where the CUDA kernels run: on a GPU, or on the CPU, thread by thread (tests/simt, which `make test` builds)."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import dmt_kernels.ops  # noqa: F401  (torch's libraries and ours are there before the one below)
from tests.devices import on_cuda

_SIMT = Path(__file__).parents[2] / "build" / "tests" / "libdmt_simt.so"
_needs_simt = pytest.mark.skipif(not _SIMT.exists(), reason="no build/tests/libdmt_simt.so; `make test` builds it")

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton; pip install triton")

if _SIMT.exists():
    torch.ops.load_library(str(_SIMT))


def simt(name: str):
    return getattr(torch.ops.dmt_simt, name).default


def cuda(name: str, function=None):
    """The op on copies of its arguments; what it changed is copied back."""
    function = function or getattr(torch.ops.dmt, name).default

    def call(*arguments, **options):  # these are no tensors
        copies: list[tuple[Tensor, Tensor]] = []

        def there(tensor: Tensor) -> Tensor:
            copies.append((tensor, tensor.cuda()))
            return copies[-1][1]

        result = function(*tree_map_only(Tensor, there, arguments), **options)
        for here, copy in copies:
            here.copy_(copy)
        return tree_map_only(Tensor, lambda tensor: tensor.cpu(), result)

    return call


def triton(name: str):
    """The same on Triton's kernels, whichever the op runs on there."""
    from dmt_kernels.ops.reference import check_ids, embedding_bag_blocks
    from dmt_kernels.ops.triton import (
        bags,
        embedding_bag,
        embedding_update,
        tower_pool,
        tower_pool_gradients,
        wire_codec,
    )

    modules = (
        check_ids,
        embedding_bag_blocks,
        bags,
        embedding_bag,
        embedding_update,
        tower_pool,
        tower_pool_gradients,
        wire_codec,
    )
    return cuda(name, next(getattr(module, name) for module in modules if hasattr(module, name)))


# op("wire_encode")(...): arguments are on the CPU, wherever it runs.
places = pytest.mark.parametrize(
    "op",
    [
        pytest.param(simt, marks=_needs_simt, id="simt"),
        pytest.param(cuda, marks=on_cuda, id="cuda"),
        pytest.param(triton, marks=[*on_cuda, needs_triton], id="triton"),
    ],
)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Equal in every bit, but for what a NaN looks like and the sign of a zero."""
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
