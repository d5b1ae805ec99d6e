"""Where tests run: on the CPU, ranks with gloo; on a GPU where there is one, ranks with NCCL, several if need be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map_only


def _refusal() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU"
    return None if dist.is_nccl_available() else "this torch has no NCCL"


_REFUSAL = _refusal()
on_cuda = [pytest.mark.cuda, pytest.mark.skipif(_REFUSAL is not None, reason=str(_REFUSAL))]
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])

on_devices = pytest.mark.usefixtures("device")  # of tests/ops/conftest.py: the test runs on each


def there(op: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The op on copies of its arguments there, and its results here again.

    Gradients find their way, and so does what an op whose name ends in _ changed. With float64, which is for CPUs only,
    the op as it is.
    """

    def call(*arguments: Any, **options: Any) -> Any:
        copies: list[tuple[Tensor, Tensor]] = []
        tree_map_only(
            Tensor, lambda tensor: copies.append((tensor, tensor.to(device, copy=True))), (arguments, options)
        )
        if any(tensor.dtype == torch.float64 for tensor, _ in copies):
            return op(*arguments, **options)
        moved = iter([copy for _, copy in copies])
        arguments, options = tree_map_only(Tensor, lambda _: next(moved), (arguments, options))
        result = op(*arguments, **options)
        if op.__name__.endswith("_"):
            for tensor, copy in copies:
                tensor.copy_(copy)
        return tree_map_only(Tensor, lambda tensor: tensor.cpu(), result)

    return call
