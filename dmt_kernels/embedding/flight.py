"""One batch on its way: which chunk is at which stage, forward and backward.

A batch is cut into chunks of ``b`` samples. While a chunk is on the wire, the next one is looked up, and the one before
compressed; but the first one is at once, since the last stage's links are idle until it leaves. The backward pass is
the same schedule reversed, and ends in one update of the tables from one buffer that the chunks have filled.

:func:`depart` starts a batch and :func:`arrive` ends it, so that whatever the model does in between runs under the last
messages, in the backward pass too: autograd runs the latest node first. :func:`arrive_by_chunk` ends it in pieces, so
that the model's work on one runs under the messages of the next ones; its gradient leaves as soon as the model has it,
while the model goes back through the piece before. :mod:`~dmt_kernels.embedding.chunk_loss` goes further: there the
model goes back through a piece before the next one arrives, and gradients leave from the first chunk to the last.

::

    depart   chunk 0  lookup, first stage, wait 0, tower module, peer stage ─┐
             chunk 1  lookup, first stage ─┐                                 │
             chunk 2  lookup, first stage  │ wait 1, tower module, peer stage┤
             ...                                                             │
    arrive                                                 wait 0, 1, ... ◄──┘
    ------------------------------------ the model's loss -------------------------------------------------------
    arrive'  peer stage of chunks n - 1, ..., 1, 0 ─┐
    depart'  chunk n - 1  wait, tower module's backward, first stage ─┐
             chunk n - 2  wait, ...                                   │ its parameters' gradients
             ...                                 wait n - 1, ..., 0 ◄─┘
    look up' update of the tables
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmt_kernels.embedding.buffers import BufferPool
from dmt_kernels.embedding.chunk_choice import MAX_CHUNKS
from dmt_kernels.embedding.stage import Stage
from dmt_kernels.embedding.table_shards import TableShards
from dmt_kernels.embedding.uncompiled import uncompiled
from dmt_kernels.ops import ReceivedIds, Ticket, stage_wait


@dataclass(frozen=True)
class Cargo:
    """What a batch is to be looked up in, and where it goes.

    Parameters
    ----------
    shards : TableShards
        What is looked up.
    received : ReceivedIds
        Bags of all ranks, by chunk.
    samples : int
        ``B``, samples of this rank.
    block_order : list of int
        Output block of every source rank, within a chunk.
    pool : BufferPool
        Where memory comes from, and goes when the batch has ended.
    number : int
        Of the batch: no two draw the same random numbers.
    """

    shards: TableShards
    received: ReceivedIds
    samples: int
    block_order: list[int]
    pool: BufferPool
    number: int


class Flight(ABC):
    """One batch on one road, between its ids and its embeddings.

    Parameters
    ----------
    cargo : Cargo
        The batch.
    out_width : int
        ``sum(C_t)``.
    """

    def __init__(self, cargo: Cargo, out_width: int) -> None:
        self.shards, self.received, self.block_order = cargo.shards, cargo.received, cargo.block_order
        self.chunks = len(self.received.chunks)
        self.chunk_samples = cargo.samples // self.chunks  # b
        device = self.received.bags.ids.device
        self._pool, self._number = cargo.pool, cargo.number
        self._tickets: dict[tuple[str, int], Ticket] = {}  # of stages that are not waited for yet
        self._out_width = out_width
        self.buffers = cargo.pool.take(self.shards.dtype, device)
        self.out = torch.empty(cargo.samples, out_width, dtype=self.shards.dtype, device=device)
        self.grad: Tensor | None = None  # [n * W * b, D_r] of the pooled rows, chunk by chunk
        self._returning = list(reversed(range(self.chunks)))  # chunks in the order in which their gradients leave
        self._returned = 0  # of them have
        self._early: dict[int, Tensor] = {}  # gradients of chunks, [b, sum(C_t)], that wait for their turn

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What autograd wants gradients of, besides the tables."""
        return ()

    def pooled_blocks(self, chunk: int, stage: Stage, ranks: int, own: int, encodes: bool) -> list[Tensor]:
        """Look a chunk up: its ``[W * b, D_r]``, blocks in ``block_order``, in as many blocks as a stage has ranks.

        If the lookup ``encodes``, all but the own block are what travels.
        """
        bags, width = self.received.chunks[chunk], self.shards.width
        rows = len(self.block_order) * self.chunk_samples // ranks
        if not (encodes and stage.is_lossy and width):
            pooled = self.buffers.take(f"pooled {chunk}", ranks * rows, width)
            self.shards.lookup_into(pooled, bags, self.block_order)
            return list(pooled.unflatten(0, (ranks, rows)).unbind(0))
        blocks = list(self.buffers.take_bytes(f"encoded {chunk}", ranks, rows, stage.format.row_bytes(width)).unbind(0))
        blocks[own] = self.buffers.take(f"pooled {chunk}", rows, width)
        self.shards.lookup_into_blocks(blocks, bags, self.block_order, stage.format)
        return blocks

    def rows_of(self, chunk: int) -> slice:
        """The chunk's rows of this rank's ``[B, ...]``."""
        return slice(chunk * self.chunk_samples, (chunk + 1) * self.chunk_samples)

    @uncompiled
    def cut(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Every chunk's rows, ``[b, ...]``, of this rank's ``[B, ...]``; RuntimeError if those are not as many."""
        return rows.unflatten(0, (self.chunks, self.chunk_samples)).unbind(0)

    @property
    def bag_order(self) -> list[int]:
        """Block of all chunks' rows that belongs to each block of all bags, ``(source, chunk)``."""
        blocks = len(self.block_order)
        return [chunk * blocks + position for position in self.block_order for chunk in range(self.chunks)]

    def pooled_grad(self, chunk: int) -> Tensor:
        """The chunk's ``[W * b, D_r]`` of the gradient that the tables are updated with."""
        assert self.grad is not None
        return self.grad.unflatten(0, (self.chunks, -1))[chunk]

    def depart(self) -> None:
        """Look all chunks up and start all messages."""
        for chunk in range(self.chunks):
            self.expect(chunk)
        self.send(0, self.lookup(0))
        self.compress(0)
        for chunk in range(1, self.chunks):
            self.send(chunk, self.lookup(chunk))
            if chunk > 1:
                self.compress(chunk - 1)
        if self.chunks > 1:
            self.compress(self.chunks - 1)

    def arrive(self, chunks: range) -> Tensor:
        """Wait for the embeddings of consecutive chunks, ``[len(chunks) * b, sum(C_t)]``."""
        for chunk in chunks:
            self.deliver(chunk)
        b = self.chunk_samples
        # No view for autograd: others' rows may still be written, and these by the model.
        out = self.out[chunks.start * b : chunks.stop * b].data
        if chunks.stop == self.chunks:
            # Not kept: autograd ties the result to this flight, and the collector does not see that way.
            self.out = self.out.new_empty(0)
        return out

    def end(self) -> None:
        """Give memory back: nobody will ask for a gradient, or for another one."""
        self._pool.give_back(self.buffers)

    def return_in_order(self) -> None:
        """Let gradients leave from the first chunk to the last; called before any has, on all ranks alike."""
        self._returning.sort()

    def depart_backward(self, chunks: range, grad: Tensor) -> None:
        """Start the gradients of what :meth:`arrive` gave for the same chunks on their way back.

        They leave from the last chunk to the first, or after :meth:`return_in_order` the other way round, on all ranks
        alike, in whichever order they come here.
        """
        if not set(self._returning[: self._returned]).isdisjoint(chunks):
            raise RuntimeError("a batch has one backward pass, which updates its tables; look it up again for another")
        if grad.shape[1] > 1 and grad.stride(1) != 1:  # of a sum over columns, say
            grad = grad.contiguous()
        self._take_grad()
        self._early |= zip(chunks, grad.unflatten(0, (len(chunks), self.chunk_samples)), strict=True)
        for chunk in self._returning[self._returned :]:
            if chunk not in self._early:
                break
            self.send_back(chunk, self._early.pop(chunk))
            self._returned += 1

    def arrive_backward(self) -> tuple[Tensor | None, ...]:
        """Bring them to the tables' owners and return the gradients of ``inputs``."""
        grad = self._take_grad()
        for chunk in set(self._returning[self._returned :]) - self._early.keys():  # the loss does not depend on them
            self.depart_backward(range(chunk, chunk + 1), grad.new_zeros(self.chunk_samples, self._out_width))
        for before, chunk in zip([None, *self._returning[:-1]], self._returning, strict=True):
            self.decompress(chunk)
            if before is not None:
                self.collect(before)
        self.collect(self._returning[-1])
        return self.input_grads()

    def update(self) -> None:
        """One step of the tables' optimizer, with which the batch has ended."""
        assert self.grad is not None
        self.shards.update(self.grad, self.received.bags, self.bag_order)
        self.end()

    @abstractmethod
    def expect(self, chunk: int) -> None:
        """Begin all stages of a chunk: say where its rows are to arrive."""

    @abstractmethod
    def lookup(self, chunk: int) -> list[Tensor]:
        """Make what :meth:`send` takes: a chunk's block for every rank of the first stage."""

    @abstractmethod
    def send(self, chunk: int, looked_up: list[Tensor]) -> None:
        """Send, in the first stage, what :meth:`lookup` has made."""

    @abstractmethod
    def compress(self, chunk: int) -> None:
        """Wait for the first stage and send in the next one, if there is one."""

    @abstractmethod
    def deliver(self, chunk: int) -> None:
        """Wait for the last stage: the chunk's rows of ``out`` are complete."""

    @abstractmethod
    def send_back(self, chunk: int, grad: Tensor) -> None:
        """Start the last stage's gradient, ``[b, sum(C_t)]``, on its way back."""

    @abstractmethod
    def decompress(self, chunk: int) -> None:
        """Wait for it and start the first stage's, if there is one."""

    @abstractmethod
    def collect(self, chunk: int) -> None:
        """Wait for the first stage: the chunk's ``pooled_grad`` is complete."""

    def input_grads(self) -> tuple[Tensor | None, ...]:
        """Gradients of ``inputs``."""
        return ()

    def _take_grad(self) -> Tensor:
        if self.grad is None:
            rows = self.chunks * len(self.block_order) * self.chunk_samples
            self.grad = self.buffers.take("grad", rows, self.shards.width)
        return self.grad

    def _wait(self, stage: str, chunk: int) -> None:
        if (ticket := self._tickets.pop((stage, chunk), None)) is not None:
            stage_wait(ticket)

    def _draw(self, chunk: int) -> int:
        return self._number * MAX_CHUNKS + chunk


@dataclass(frozen=True)
class InFlight:
    """What :func:`depart` returns, and :func:`arrive` or :func:`arrive_by_chunk` takes."""

    flight: Flight
    token: Tensor


def depart(flight: Flight) -> InFlight:
    """Start a batch."""
    # Nothing that enters requires a gradient for sure, so an anchor that does makes autograd come back here.
    # On the device, since autograd has a thread for each: all three nodes belong to one.
    anchor = torch.zeros((), device=flight.out.device, requires_grad=torch.is_grad_enabled())
    # Before the inputs are computed: autograd runs what came first last.
    looked_up = _LookUp.apply(anchor, flight)
    return InFlight(flight, _Depart.apply(looked_up, flight, *flight.inputs))


def arrive(in_flight: InFlight) -> Tensor:
    """End a batch: ``[B, sum(C_t)]``, differentiable once."""
    return arrive_in(in_flight, range(in_flight.flight.chunks))


def arrive_by_chunk(in_flight: InFlight) -> Iterator[Tensor]:
    """End a batch in pieces, ``[b, sum(C_t)]``, each of them when it is asked for; all of them have to be."""
    for chunk in range(in_flight.flight.chunks):
        yield arrive_in(in_flight, range(chunk, chunk + 1))


@uncompiled
def arrive_in(in_flight: InFlight, chunks: range) -> Tensor:
    """End consecutive chunks of a batch, ``[len(chunks) * b, sum(C_t)]``."""
    flight, token = in_flight.flight, in_flight.token
    out = _Arrive.apply(token, flight, chunks)
    if not token.requires_grad and chunks.stop == flight.chunks:
        flight.end()
    return out


class _LookUp(torch.autograd.Function):
    """Its backward is the update. A node of its own, so that the gradients of a tower module are out before."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, flight: Flight) -> Tensor:
        ctx.flight = flight
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        ctx.flight.update()
        return None, None


class _Depart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, flight: Flight, *inputs: Tensor) -> Tensor:
        ctx.flight = flight
        flight.depart()
        return token.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, *ctx.flight.arrive_backward()


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, flight: Flight, chunks: range) -> Tensor:
        ctx.flight, ctx.chunks = flight, chunks
        return flight.arrive(chunks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.flight.depart_backward(ctx.chunks, grad)
        return grad.new_zeros(()), None, None
