"""The one collective under every exchange: an all-to-all of uneven pieces, split into start and wait.

In eager mode it is a stage of the compiled engine. Traced, or without that engine, it is the composition of functional
collectives. Both know their group by name and send the gradient back over the same road.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from dmt_kernels.ops import traffic
from dmt_kernels.ops._composition import compose
from dmt_kernels.ops._direct import is_eager
from dmt_kernels.ops.groups import naming_failures
from dmt_kernels.ops.stage import Ticket, engine_is_compiled, stage_start, stage_wait
from dmt_kernels.spec import InputError

# gloo moves these as they are; every other dtype travels as bytes in a composition.
_WIRE_DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8)


@dataclass(eq=False)
class _Road:
    """What an all-to-all that runs eagerly has to remember."""

    output_splits: list[int]
    input_splits: list[int]
    group: str
    ticket: Ticket | None = None  # of a stage; else a functional collective is under way
    is_waited_for: bool = False
    back: Tensor | None = None  # the gradient on its way


_roads: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of what has started and somebody holds


def all_to_all_start(input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int], group: str) -> Tensor:
    """Start sending piece ``i`` of ``input`` to rank ``i`` of the group.

    Parameters
    ----------
    input : Tensor
        ``[sum(input_splits)]``, any dtype; nobody may write to it until :func:`all_to_all_wait`.
    output_splits, input_splits : sequence of int
        Elements received from and sent to every rank, in group order; zeros are allowed.
    group : str
        Name of the process group.

    Returns
    -------
    Tensor
        ``[sum(output_splits)]``, undefined until :func:`all_to_all_wait` returns it. Differentiable in
        ``input``: the backward pass is the reverse all-to-all, which the backward of the wait starts and the backward
        of the start waits for, so that the gradient of what stands between them runs meanwhile.
    """
    if is_eager():
        return _Start.apply(input, output_splits, input_splits, group)
    return torch.ops.dmt.all_to_all_start(input, output_splits, input_splits, group)


def all_to_all_wait(started: Tensor) -> Tensor:
    """Return what :func:`all_to_all_start` promised, once it has arrived.

    Called again it returns the same, without a gradient: its backward pass is refused.

    Raises
    ------
    ExchangeError
        A rank of the group died, or did not answer within the group's timeout.
    """
    return _Wait.apply(started) if is_eager() else torch.ops.dmt.all_to_all_wait(started)


def all_to_all(input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int], group: str) -> Tensor:
    """:func:`all_to_all_start` and :func:`all_to_all_wait` in one."""
    return all_to_all_wait(all_to_all_start(input, output_splits, input_splits, group))


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, output_splits: list[int], input_splits: list[int], group: str) -> Tensor:
        ctx.road = road = _Road(output_splits, input_splits, group)
        torch._check(input.dim() == 1, lambda: f"all_to_all: input has {input.dim()} dimensions, 1 expected")
        torch._check(
            input.numel() == sum(input_splits),
            lambda: f"all_to_all: input has {input.numel()} elements, its splits add up to {sum(input_splits)}",
        )
        if torch.compiler.is_compiling():  # a compiled graph runs the collective alone: nothing counts or words it
            return _compose_start(input, road)
        if _runs_on_engine(input):
            started = input.new_empty(sum(output_splits))
            arriving = started.unsqueeze(1).split(output_splits)
            road.ticket = stage_start(input.contiguous().unsqueeze(1).split(input_splits), arriving, group)
            road.ticket.promise(started)  # should somebody wait for it in a compiled graph
        else:
            traffic.count_sent(group, [n * input.element_size() for n in input_splits])
            with naming_failures(group, "sent its blocks"):
                started = _compose_start(input, road)
        _roads[started] = road
        return started

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        road, back = ctx.road, ctx.road.back
        road.back = None
        if back is None:  # the wait was, or is being, compiled
            back = all_to_all_start(grad, road.input_splits, road.output_splits, road.group)
        return all_to_all_wait(back), None, None, None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, started: Tensor) -> Tensor:
        ctx.is_again = False
        ctx.road = road = None if torch.compiler.is_compiling() else _roads.get(started)
        if road is None:  # the start was, or is being, compiled
            return torch.ops._c10d_functional.wait_tensor(started)
        if road.is_waited_for:  # to recompute what stands behind it, say
            ctx.is_again = True
            return torch.ops._c10d_functional.wait_tensor(started)
        road.is_waited_for = True
        if road.ticket is not None:
            stage_wait(road.ticket)
        with naming_failures(road.group, "waited for the others' blocks"):
            return torch.ops._c10d_functional.wait_tensor(started)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if ctx.is_again:
            raise InputError("all_to_all_wait: the gradient of what was started comes back by the first wait alone")
        if (road := ctx.road) is not None:
            road.back = all_to_all_start(grad, road.input_splits, road.output_splits, road.group)
        return grad  # the start's backward knows what to do with it


def _runs_on_engine(input: Tensor) -> bool:
    """Whether this is a call on memory that is there, that nothing traces or watches."""
    return engine_is_compiled() and is_eager() and type(input) is Tensor and not torch._C._len_torch_dispatch_stack()


def _compose_start(input: Tensor, road: _Road) -> Tensor:
    payload, scale = input.contiguous(), 1
    if input.dtype not in _WIRE_DTYPES:
        payload, scale = payload.view(torch.uint8), input.element_size()
    splits = [n * scale for n in road.output_splits], [n * scale for n in road.input_splits]
    return torch.ops._c10d_functional.all_to_all_single(payload, *splits, road.group).view(input.dtype)


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
    torch._check(sum(widths) > 0, lambda: f"all-to-all of blocks: no rank sends a column, widths are {list(widths)}")
    arrived = all_to_all_wait(started)
    rows = arrived.numel() // sum(widths)
    pieces = arrived.split([rows * width for width in widths])
    return [piece.view(rows, width) for piece, width in zip(pieces, widths, strict=True)]


def compose_stage(stage: str) -> None:
    """Register ``dmt::{stage}_all_to_all`` with its start and wait, all on blocks."""
    compose(f"{stage}_all_to_all_start", start_blocks)
    compose(f"{stage}_all_to_all_wait", all_to_all_wait)
    compose(f"{stage}_all_to_all", lambda blocks, widths, group: all_to_all_wait(start_blocks(blocks, widths, group)))
