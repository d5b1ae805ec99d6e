"""Where tests run: on the CPU, ranks with gloo; on a GPU where there is one, ranks with NCCL, several if need be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import currently_in_test_context, reject
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

    Gradients find their way, and so does what an op whose name ends in _ changed. A test, or an example of one, with
    float64, which is for CPUs only, ends here: skipped.
    """

    def call(*arguments: Any, **options: Any) -> Any:
        copies: list[tuple[Tensor, Tensor]] = []
        tree_map_only(Tensor, lambda tensor: copies.append((tensor, _Copy.apply(tensor, device))), (arguments, options))
        if any(tensor.dtype == torch.float64 for tensor, _ in copies):
            if currently_in_test_context():
                reject()
            pytest.skip("float64 is for CPUs only")
        moved = iter([copy for _, copy in copies])
        arguments, options = tree_map_only(Tensor, lambda _: next(moved), (arguments, options))
        result = op(*arguments, **options)
        if op.__name__.endswith("_"):
            for tensor, copy in copies:
                tensor.copy_(copy)
        return tree_map_only(Tensor, lambda tensor: tensor.cpu(), result)

    return call


class _Copy(torch.autograd.Function):
    """``tensor.to``, whose own backward pass refuses sparse gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: str) -> Tensor:
        ctx.origin = tensor.device
        return tensor.to(device, copy=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.origin), None
