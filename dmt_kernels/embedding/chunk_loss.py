"""A loss that is a sum over samples, chunk by chunk: forward and back through one while the next ones travel.

If all chunks went forward before the first went back, the last stage's links would be idle from the arrival of the last
chunk's rows until its gradient is there. This way they are not: gradients queue behind rows. Nor does the model keep
what it needs to go back for more than one chunk.

::

    forward   wait 0, model, loss, model', peer stage' 0
              wait 1, model, loss, model', peer stage' 1
              ...
              wait n - 1, model, loss
    backward                           model', peer stage' n - 1, then as in :mod:`~dmt_kernels.embedding.flight`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dmt_kernels.embedding.flight import InFlight, arrive_in
from dmt_kernels.embedding.uncompiled import uncompiled


def finish_by_chunk(in_flight: InFlight, loss: Callable[..., Tensor], rows: Sequence[Tensor]) -> Tensor:
    """End a batch of several chunks in a loss; see :meth:`EmbeddingExchange.finish_into_loss`."""
    flight = in_flight.flight
    last = flight.chunks - 1
    by_chunk = [part.unflatten(0, (flight.chunks, flight.chunk_samples)).unbind(0) for part in rows]
    grads: list[list[Tensor]] = [[] for _ in rows]  # of every chunk but the last, [b, ...]
    before = in_flight.token.detach().clone()  # sum of the chunks' shares: a zero
    flight.return_in_order()
    for chunk in range(last):
        # A token that no other has come from: what goes back from here ends with this chunk's gradient on its way.
        alone = replace(in_flight, token=in_flight.token.detach().requires_grad_())
        embeddings = arrive_in(alone, range(chunk, chunk + 1))
        parts = [part[chunk].detach().requires_grad_(part[chunk].requires_grad) for part in by_chunk]
        torch.clear_autocast_cache()  # or chunks would share narrow copies of weights, whose graph is gone
        share = loss(embeddings, *parts)
        if share.requires_grad:
            _go_back(share)
        for of_row, part in zip(grads, parts, strict=True):
            if part.requires_grad:
                of_row.append(torch.zeros_like(part) if part.grad is None else part.grad)
        before = before + share.detach()
    torch.clear_autocast_cache()
    parts = [
        _LastRows.apply(row, of_row) if row.requires_grad else part[last]
        for row, of_row, part in zip(rows, grads, by_chunk, strict=True)
    ]
    share = loss(arrive_in(in_flight, range(last, last + 1)), *parts)
    return _WholeLoss.apply(share, before, in_flight.token)


@uncompiled
def _go_back(share: Tensor) -> None:
    with torch.autocast(share.device.type, enabled=False):  # as in a backward pass outside
        share.backward()


class _LastRows(torch.autograd.Function):
    """The last chunk's rows; the gradient is that of all rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, grads: list[Tensor]) -> Tensor:
        ctx.grads = grads
        return rows[sum(map(len, grads)) :].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return torch.cat([*ctx.grads, grad]), None


class _WholeLoss(torch.autograd.Function):
    """The last chunk's share and what went before; the batch's way back ends even if that share does not need it."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, before: Tensor, token: Tensor) -> Tensor:
        return share + before.to(share.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        if not grad.is_cuda and grad.item() != 1:  # on CUDA it would wait for the device
            raise RuntimeError("a loss that has gone back chunk by chunk cannot be scaled: scale it where it is made")
        return grad, None, grad.new_zeros(())
