"""What the peer stage's formats would do to rows and gradients, where no rank sends any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dmt_kernels import ops
from dmt_kernels.embedding.chunk_choice import MAX_CHUNKS
from dmt_kernels.spec import Payloads, Topology, WireFormat, derive_seed


class LocalPayload:
    """The peer stage's rounding of a global batch, bit for bit that of ranks whose batches are not cut into chunks.

    Every rank has an equal run of the batch's samples (the ranks are to divide their number); what its own tower makes
    of them stays as it is.

    Parameters
    ----------
    topology : Topology
        The ranks that there would be.
    payloads : Payloads
        Formats; those of the tower stage are not looked at.
    seed : int
        Of the run, for stochastic rounding.
    """

    def __init__(self, topology: Topology, payloads: Payloads, seed: int) -> None:
        self.topology, self.payloads = topology, payloads
        self.seeds = [derive_seed(seed, "payloads", g) for g in range(topology.world)] if payloads.stochastic else None

    def __call__(self, outputs: list[Tensor], number: int) -> list[Tensor]:
        """Send and receive what the towers have made of a batch, ``[B, C_t]`` each; so do their gradients.

        No two batches have the same number, by which they draw.
        """
        if self.payloads.peer is self.payloads.peer_backward is WireFormat.FP32:
            return outputs
        return [_PeerStage.apply(output, tower, self, number) for tower, output in enumerate(outputs)]

    def forward(self, rows: Tensor, tower: int) -> None:
        """Round what a tower sends, ``[B, C_t]``, in place."""
        for _, sent in self._sent(rows, tower):
            _round_trip(sent, self.payloads.peer)

    def backward(self, grad: Tensor, tower: int, number: int) -> None:
        """Round what a tower gets back, ``[B, C_t]``, in place."""
        for rank, sent in self._sent(grad, tower):
            # A rank sends a block to every other tower, in their order: its rows are counted through them.
            before = tower - (tower > self.topology.tower_of(rank))
            drawn = {} if self.seeds is None else {"seed": self.seeds[rank], "first_row": before * len(sent)}
            _round_trip(sent, self.payloads.peer_backward, step=number * MAX_CHUNKS, **drawn)

    def _sent(self, rows: Tensor, tower: int) -> Iterator[tuple[int, Tensor]]:
        """The rows of every rank of another tower."""
        for rank, share in enumerate(rows.tensor_split(self.topology.world)):
            if self.topology.tower_of(rank) != tower:
                yield rank, share


def _round_trip(rows: Tensor, format: WireFormat, **drawn: Any) -> None:
    if format is not WireFormat.FP32 and len(rows):
        rows.copy_(ops.wire_decode(ops.wire_encode(rows, format, **drawn), rows.shape[1], format, rows.dtype))


class _PeerStage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, tower: int, payload: LocalPayload, number: int) -> Tensor:
        ctx.tower, ctx.payload, ctx.number = tower, payload, number
        received = output.clone()
        payload.forward(received, tower)
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sent = grad.clone(memory_format=torch.contiguous_format)
        ctx.payload.backward(sent, ctx.tower, ctx.number)
        return sent, None, None, None
