"""A loss that is a sum over samples, chunk by chunk: forward and back through one while the next ones travel.

If all chunks went forward before the first went back, the last stage's links would be idle from the arrival of the last
chunk's rows until its gradient is there. This way they are not: gradients queue behind rows. And the model keeps the
activations of one chunk only.

::

    forward   wait 0, model, loss, model', peer stage' 0
              wait 1, model, loss, model', peer stage' 1
              ...
              wait n - 1, model, loss
    backward                           model', peer stage' n - 1
              depart' as in :mod:`~dmt_kernels.embedding.flight`, but from chunk 0 to n - 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmt_kernels.embedding.flight import InFlight, arrive_in
from dmt_kernels.embedding.uncompiled import uncompiled


def finish_by_chunk(in_flight: InFlight, loss: Callable[..., Tensor], rows: Sequence[Tensor]) -> Tensor:
    """End a batch of several chunks in a loss; see :meth:`EmbeddingExchange.finish_into_loss`."""
    flight = in_flight.flight
    last = flight.chunks - 1
    by_chunk = [flight.cut(part) for part in rows]
    # Of the rows that want one, and of every chunk but the last: [b, ...].
    grads: dict[int, list[Tensor]] = {number: [] for number, part in enumerate(rows) if part.requires_grad}
    before = torch.zeros((), dtype=flight.out.dtype, device=flight.out.device)  # the shares of chunks, added up
    flight.return_in_order()
    for chunk in range(last):
        # A token that no other has come from: what goes back from here ends with this chunk's gradient on its way.
        alone = replace(in_flight, token=in_flight.token.detach().requires_grad_())
        embeddings = arrive_in(alone, range(chunk, chunk + 1))
        parts = [part[chunk].detach().requires_grad_(number in grads) for number, part in enumerate(by_chunk)]
        torch.clear_autocast_cache()  # or chunks would share narrow copies of weights, whose graph is gone
        share = loss(embeddings, *parts)
        if share.requires_grad:
            _go_back(share)
        for number, of_chunks in grads.items():
            grad = parts[number].grad
            of_chunks.append(torch.zeros_like(parts[number]) if grad is None else grad)
        before = before + share.detach()
    torch.clear_autocast_cache()
    parts = [part[last] for part in by_chunk]
    tie, *wanting = _LastRows.apply(list(grads.values()), before, *(rows[number] for number in grads))
    for number, part in zip(grads, wanting, strict=True):
        parts[number] = part
    share = loss(arrive_in(in_flight, range(last, last + 1)), *parts)
    return _WholeLoss.apply(share, before, in_flight.token, tie)


@uncompiled
def _go_back(share: Tensor) -> None:
    with torch.autocast(share.device.type, enabled=False):  # as in a backward pass outside
        share.backward()


class _LastRows(torch.autograd.Function):
    """The last chunk's rows, behind something that is a reason to go back; the gradients are those of all rows."""

    @staticmethod
    def forward(ctx: Any, grads: list[list[Tensor]], before: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        ctx.grads = grads
        starts = [sum(map(len, of_chunks)) for of_chunks in grads]
        parts = (part[start:].clone() for part, start in zip(rows, starts, strict=True))
        return before.new_zeros(()), *parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, *last: Tensor) -> tuple[Tensor | None, ...]:
        rows = (torch.cat([*of_chunks, grad]) for of_chunks, grad in zip(ctx.grads, last, strict=True))
        return None, None, *rows


class _WholeLoss(torch.autograd.Function):
    """The last chunk's share and those before; what the others left goes back even if that share does not."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, before: Tensor, *reasons: Tensor) -> Tensor:
        ctx.reasons = len(reasons)
        return share + before.to(share.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not grad.is_cuda and grad.item() != 1:  # on CUDA it would wait for the device
            raise RuntimeError("a loss that has gone back chunk by chunk cannot be scaled: scale it where it is made")
        return grad, None, *(grad.new_zeros(()) for _ in range(ctx.reasons))
