"""Calls of ops that skip torch.library's way through autograd where it would do nothing, or nothing quickly.

What is registered from Python for a dispatch key runs at every call, and the autograd of `torch.library` flattens and
rebuilds all arguments besides: 2 us per call without gradients, 40 with. The ops keep those registrations, for tracing
and for callers of ``torch.ops.dmt.*``; the functions of this package call through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload


def is_eager() -> bool:
    """Whether calls just run: nothing compiles them, and no torch.func transform rewrites them."""
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def record(
    name: str, compute: Callable[..., Tensor], backward: Callable[[Any, Tensor, Sequence[Any]], tuple[Any, ...]]
) -> Callable[..., Tensor]:
    """Return a function that does `compute` below autograd and has its `backward` recorded, in eager mode alone.

    Parameters
    ----------
    name : str
        What autograd calls the node.
    compute : callable
        Takes ``ctx`` and the function's arguments, which are as in :func:`differentiable`.
    backward : callable
        As in :func:`differentiable`.
    """

    def forward(ctx: Any, count: int, *arguments: Any) -> Tensor:
        ctx.count = count
        with torch._C._AutoDispatchBelowAutograd():
            return compute(ctx, list(arguments[count:]), *arguments[:count])

    def flat_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        _, *needed = ctx.needs_input_grad
        first, *others = backward(ctx, grad, (needed[ctx.count :], *needed[: ctx.count]))
        return None, *others, *first

    methods = {"forward": staticmethod(forward), "backward": staticmethod(flat_backward)}
    function = type(name, (torch.autograd.Function,), methods)
    # Past what `Function.apply` does in Python for torch.func, argument by argument: no transform is active here.
    apply = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def call(tensors: list[Tensor], *others: Any) -> Tensor:
        return apply(len(others), *others, *tensors)

    return call


def differentiable(
    op: OpOverload,
    setup_context: Callable[[Any, tuple[Any, ...], Tensor], None],
    backward: Callable[[Any, Tensor, Sequence[Any]], tuple[Any, ...]],
) -> Callable[..., Tensor]:
    """Register the autograd of `op`, and return a function that calls it sooner.

    Parameters
    ----------
    op : OpOverload
        Its first argument is a list of tensors; other tensors are arguments of their own.
    setup_context : callable
        As for ``torch.library.register_autograd``.
    backward : callable
        The same, but ``ctx.needs_input_grad`` is its third argument.

    Returns
    -------
    callable
        Takes the arguments of `op`, all of them and by position, the first as a list.
    """

    def compute(ctx: Any, *inputs: Any) -> Tensor:
        output = op(*inputs)
        setup_context(ctx, inputs, output)
        return output

    name = "".join(word.capitalize() for word in op.name().split("::")[1].split("_"))
    recorded = record(name, compute, backward)

    def call(tensors: list[Tensor], *others: Any) -> Tensor:
        if not is_eager():
            return op(tensors, *others)
        if torch.is_grad_enabled() and (_any_needs_grad(tensors) or _any_needs_grad(others)):
            return recorded(tensors, *others)
        with torch._C._AutoDispatchBelowAutograd():
            return op(tensors, *others)

    torch.library.register_autograd(
        op, lambda ctx, grad: backward(ctx, grad, ctx.needs_input_grad), setup_context=setup_context
    )
    return call


def differentiable_once(names: str, *gradients: str) -> Callable[..., None]:
    """Refuse to differentiate the ops `gradients`, which are those of `names`, and return what refuses.

    Without this torch would only warn, and give zeros.
    """

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"{names} can be differentiated only once")

    for op in gradients:
        torch.library.register_autograd(f"dmt::{op}", refuse)
    return refuse


def mutating(op: OpOverload, count: int) -> Callable[..., None]:
    """Let autograd know that `op` changes its first `count` arguments, and return a function that calls it sooner.

    What saved a tensor that is changed then refuses to be differentiated, instead of taking the wrong values.

    Parameters
    ----------
    op : OpOverload
        Its first arguments are tensors or lists of tensors.
    count : int
        How many of them it changes.

    Returns
    -------
    callable
        Takes the arguments of `op` by position.
    """

    def note(arguments: Sequence[Any]) -> None:
        for changed in arguments[:count]:
            torch.autograd.graph.increment_version(changed)

    def change(keyset: torch._C.DispatchKeySet, *arguments: Any) -> None:
        note(arguments)
        op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *arguments)

    def call(*arguments: Any) -> None:
        if not is_eager():
            op(*arguments)
            return
        note(arguments)
        with torch._C._ExcludeDispatchKeyGuard(_CHANGE_IS_NOTED):
            op(*arguments)

    _dmt.impl(op.name().split("::")[1], change, "ADInplaceOrView", with_keyset=True)
    return call


_CHANGE_IS_NOTED = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)  # without the key, no `change`
_dmt = torch.library.Library("dmt", "IMPL")


def _any_needs_grad(arguments: Sequence[Any]) -> bool:
    for argument in arguments:  # noqa: SIM110  (a generator within `any` takes twice the time)
        if isinstance(argument, Tensor) and argument.requires_grad:
            return True
    return False
