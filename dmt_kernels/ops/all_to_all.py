"""The one collective under every exchange: an all-to-all of uneven pieces, split into start and wait.

It is the composition of functional collectives, so it is traceable, knows its group by name, and
sends its gradient back over the same road.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from dmt_kernels.ops import traffic
from dmt_kernels.ops._composition import compose
from dmt_kernels.ops.groups import naming_failures

# gloo moves these as they are; every other dtype travels as bytes.
_WIRE_DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8)
_groups: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of what has started and nobody has waited for


def all_to_all_start(input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int], group: str) -> Tensor:
    """Start sending piece ``i`` of ``input`` to rank ``i`` of the group.

    Parameters
    ----------
    input : Tensor
        ``[sum(input_splits)]``, any dtype.
    output_splits, input_splits : sequence of int
        Elements received from and sent to every rank, in group order; zeros are allowed.
    group : str
        Name of the process group.

    Returns
    -------
    Tensor
        ``[sum(output_splits)]``, undefined until :func:`all_to_all_wait` returns it. Differentiable in
        ``input``: the backward pass is the reverse all-to-all.
    """
    return torch.ops.dmt.all_to_all_start(input, output_splits, input_splits, group)


def all_to_all_wait(started: Tensor) -> Tensor:
    """Return what :func:`all_to_all_start` promised, once it has arrived; call it once.

    Raises
    ------
    ExchangeError
        A rank of the group died, or did not answer within the group's timeout.
    """
    return torch.ops.dmt.all_to_all_wait(started)


def all_to_all(input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int], group: str) -> Tensor:
    """:func:`all_to_all_start` and :func:`all_to_all_wait` in one."""
    return all_to_all_wait(all_to_all_start(input, output_splits, input_splits, group))


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, output_splits: list[int], input_splits: list[int], group: str) -> Tensor:
        ctx.output_splits, ctx.input_splits, ctx.group = output_splits, input_splits, group
        torch._check(input.dim() == 1, lambda: f"all_to_all: input has {input.dim()} dimensions, 1 expected")
        torch._check(
            input.numel() == sum(input_splits),
            lambda: f"all_to_all: input has {input.numel()} elements, its splits add up to {sum(input_splits)}",
        )
        payload, scale = input.contiguous(), 1
        if input.dtype not in _WIRE_DTYPES:
            payload, scale = payload.view(torch.uint8), input.element_size()
        splits = [n * scale for n in output_splits], [n * scale for n in input_splits]
        if torch.compiler.is_compiling():  # a compiled graph runs the collective alone: nothing counts or words it
            return torch.ops._c10d_functional.all_to_all_single(payload, *splits, group).view(input.dtype)
        traffic.count_sent(group, [n * input.element_size() for n in input_splits])
        with naming_failures(group, "sent its blocks"):
            started = torch.ops._c10d_functional.all_to_all_single(payload, *splits, group).view(input.dtype)
        _groups[started] = group
        return started

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return all_to_all(grad, ctx.input_splits, ctx.output_splits, ctx.group), None, None, None


class _Wait(torch.autograd.Function):
    """The functional wait has no gradient of its own. The gradient's road begins in the backward of start."""

    @staticmethod
    def forward(ctx: Any, started: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return torch.ops._c10d_functional.wait_tensor(started)
        with naming_failures(_groups.pop(started, "unknown"), "waited for the others' blocks"):
            return torch.ops._c10d_functional.wait_tensor(started)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


# Compositions, not opaque ops: under torch.compile the functional collectives stand in the graph themselves, and
# inductor knows of those that their buffers are in flight.
compose("all_to_all_start", _Start.apply)
compose("all_to_all_wait", _Wait.apply)


def start_blocks(blocks: Tensor, widths: Sequence[int], group: str) -> Tensor:
    """Start sending block ``i`` of ``[G, N, D]`` to rank ``i``; ``[N * sum(widths)]`` will arrive."""
    torch._check(
        blocks.dim() == 3 and blocks.shape[0] == len(widths),
        lambda: f"all-to-all of blocks: got shape {tuple(blocks.shape)}, expected [{len(widths)}, N, D]",
    )
    rows, width = blocks.shape[1:]
    return all_to_all_start(blocks.reshape(-1), [rows * w for w in widths], [rows * width] * len(widths), group)


def wait_blocks(started: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Wait and view what arrived as one ``[N, D_i]`` block per source rank; ``sum(widths)`` must not be 0."""
    arrived = all_to_all_wait(started)
    rows = arrived.numel() // sum(widths)
    pieces = arrived.split([rows * width for width in widths])
    return [piece.view(rows, width) for piece, width in zip(pieces, widths, strict=True)]


def compose_stage(stage: str) -> None:
    """Register ``dmt::{stage}_all_to_all`` with its start and wait, all on blocks."""
    compose(f"{stage}_all_to_all_start", start_blocks)
    compose(f"{stage}_all_to_all_wait", all_to_all_wait)
    compose(f"{stage}_all_to_all", lambda blocks, widths, group: all_to_all_wait(start_blocks(blocks, widths, group)))
