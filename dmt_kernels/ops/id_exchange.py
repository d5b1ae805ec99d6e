"""Brings every rank the ids of the features whose shards it holds, from all ranks.

:class:`IdExchange` is what a training step uses: small messages, waited for late. :func:`id_exchange` is one op, which
can be traced, and its oracle.

Letters: ``W`` ranks, ``F`` features of the batch, ``B`` samples per rank, ``S`` features that this rank holds, ``n``
chunks of ``b = B / n`` samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from dmt_kernels.ops._composition import implement
from dmt_kernels.ops.all_to_all import all_to_all
from dmt_kernels.ops.bag_arguments import on_device
from dmt_kernels.ops.check_ids import MissingIds, check_ids
from dmt_kernels.ops.id_codec import HEADER_BYTES, batch_form, bytes_per_id, id_decode, id_encode, id_payload_bytes
from dmt_kernels.ops.stage import Ticket, stage_start, stage_wait
from dmt_kernels.spec import InputError, Jagged


def id_dtype(rows: Sequence[int]) -> torch.dtype:
    """The narrowest dtype of ids that ops take and that holds every row of tables with so many rows."""
    return torch.int32 if max(rows, default=0) < 2**31 else torch.int64


@dataclass
class IdRoutes:
    """What is the same for all batches: who looks up what.

    Parameters
    ----------
    rows : tuple of F ints
        Rows of each feature's table.
    routes : tuple of W tuples of int
        Features that each rank of the group looks up, in its order; a feature may go to several ranks, or twice to one.
    rank : int
        This rank's place in the group.
    group : str
        Name of the process group.

    Attributes
    ----------
    samples : int
        ``B`` of the last batch, on which all ranks agreed.
    """

    rows: tuple[int, ...]
    routes: tuple[tuple[int, ...], ...]
    rank: int
    group: str
    samples: int = field(default=0, init=False)

    @cached_property
    def flat(self) -> list[int]:
        """All routes, one after the other."""
        return [feature for route in self.routes for feature in route]

    @cached_property
    def sizes(self) -> list[int]:
        """Features that each rank looks up."""
        return [len(route) for route in self.routes]

    @cached_property
    def id_bytes(self) -> list[int]:
        """Bytes of an id on its way to each rank."""
        return [bytes_per_id([self.rows[feature] for feature in route]) for route in self.routes]

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the ids that arrive."""
        return id_dtype(self.rows)

    def lengths_bytes(self, samples: int) -> list[int]:
        """Of the message of lengths of ``B`` samples to each rank."""
        return [HEADER_BYTES + size * samples for size in self.sizes]


@dataclass(frozen=True)
class ReceivedIds:
    """What arrives. Nobody may write into it: it may be shared, and the update of the tables reads it again.

    Parameters
    ----------
    bags : Jagged
        Blocks ``(source rank, chunk)``, in a block bags ``(lookup, sample in the chunk)``; what an update reads.
        Missing ids are -1, weights float32.
    chunks : tuple of n Jagged
        Of every chunk, blocks (source rank), in a block bags ``(lookup, sample in the chunk)``; what its lookup reads.
        With one chunk it is `bags`.
    """

    bags: Jagged
    chunks: tuple[Jagged, ...]


class IdExchange:
    """One batch's exchange on its way. All ranks make, advance and wait for the same ones in the same order.

    Backends do not look whether a message has the size that is expected of it: one that is too short leaves rubbish
    behind, one that is too long ends the process. So the size of the first message follows from what all ranks know,
    the batch before. A rank whose batch is another one than that announces it, by the header alone, and all send their
    lengths once they see that their batches are alike.

    Parameters
    ----------
    sparse : Jagged
        This rank's bags, ``F * B`` of them, feature-major.
    routes : IdRoutes
        Who looks up what.
    on_missing : callable or None
        Called with the whereabouts of ids that are no rows of their tables, if there are any, before anything is sent.
        What it raises ends the exchange; if it returns they are missing ids.
    chunks : int
        Pieces that the batch is cut into, the same on all ranks; where ``B`` is no multiple of it, ``n`` is the largest
        number below that divides ``B``.

    Raises
    ------
    RuntimeError
        If the offsets do not hold a whole number of samples for every feature.
    """

    def __init__(
        self,
        sparse: Jagged,
        routes: IdRoutes,
        on_missing: Callable[[MissingIds], None] | None = None,
        *,
        chunks: int = 1,
    ) -> None:
        self._routes, self._weighted = routes, sparse.weights is not None
        self._samples = (sparse.offsets.numel() - 1) // max(1, len(routes.rows))
        self._chunks = next(n for n in range(chunks, 0, -1) if self._samples % n == 0)
        self._encoded, self._payload, sizes = id_encode(
            sparse, routes.rows, routes.flat, routes.sizes, routes.id_bytes, self._chunks
        )
        *self._payload_splits, missing = sizes.tolist()
        if missing and on_missing is not None:
            on_missing(check_ids(sparse.ids.cpu(), sparse.offsets.cpu(), routes.rows))
        self._is_announced = self._samples == routes.samples
        self._lengths = self._send_lengths(self._encoded if self._is_announced else self._announcement())
        self._ids: _Message | None = None
        self._received: ReceivedIds | None = None

    def advance(self) -> None:
        """Wait for the lengths and send the ids, unless that has happened.

        Raises
        ------
        InputError
            On all ranks, if their batches are unlike.
        """
        if self._ids is not None:
            return
        routes = self._routes
        self._compare(self._lengths.wait())
        routes.samples = self._samples
        if not self._is_announced:
            self._lengths = self._send_lengths(self._encoded)
        item_bytes = routes.id_bytes[routes.rank] + 4 * self._weighted
        sizes = id_payload_bytes(self._lengths.wait(), len(routes.routes), item_bytes)
        self._ids = _Message(self._payload, sizes.tolist(), self._payload_splits, routes.group)

    def wait(self) -> ReceivedIds:
        """Wait for everything and return it; raises what :meth:`advance` raises."""
        if self._received is None:
            self.advance()
            assert self._ids is not None
            routes = self._routes
            bags, *chunks = id_decode(
                self._lengths.wait(),
                self._ids.wait(),
                len(routes.routes),
                routes.id_bytes[routes.rank],
                weighted=self._weighted,
                chunks=self._chunks,
                dtype=routes.dtype,
            )
            self._received = ReceivedIds(bags, tuple(chunks) or (bags,))
        return self._received

    def _send_lengths(self, message: Tensor) -> _Message:
        """Send a message of as many samples as all ranks know of."""
        splits = self._routes.lengths_bytes(self._routes.samples)
        return _Message(message, [splits[self._routes.rank]] * len(splits), splits, self._routes.group)

    def _announcement(self) -> Tensor:
        """The header to everyone, in messages of the size that they expect."""
        messages = [self._encoded.new_zeros(size) for size in self._routes.lengths_bytes(self._routes.samples)]
        for message in messages:
            message[:HEADER_BYTES] = self._encoded[:HEADER_BYTES]
        return torch.cat(messages)

    def _compare(self, lengths: Tensor) -> None:
        headers = lengths.view(len(self._routes.routes), -1)[:, :HEADER_BYTES].contiguous().view(torch.int64)
        _refuse_unlike(headers[:, 1:].tolist())


def _refuse_unlike(batches: Sequence[Sequence[int]]) -> None:
    """Raise unless all ranks' batches, samples and their :func:`~dmt_kernels.ops.id_codec.batch_form`, are alike."""
    for rank, batch in enumerate(batches):
        if batch != batches[0]:
            # Another number of samples would say enough.
            shows_chunks = batch[0] == batches[0][0] and batch[1] >> 32 != batches[0][1] >> 32
            one, other = (
                f"{samples} samples{' with weights' if form & 1 else ''}"
                f"{f' in {form >> 32} chunks' if shows_chunks else ''}"
                for samples, form in (batch, batches[0])
            )
            raise InputError(f"rank {rank} has a batch of {one}, rank 0 of {other}: all ranks need like batches")


class _Message:
    """An all-to-all of bytes on its way."""

    def __init__(self, sent: Tensor, output_splits: list[int], input_splits: list[int], group: str) -> None:
        self._received = sent.new_empty(sum(output_splits))
        blocks = (sent.unsqueeze(1).split(input_splits), self._received.unsqueeze(1).split(output_splits))
        self._ticket: Ticket | None = stage_start(*blocks, group)

    def wait(self) -> Tensor:
        if self._ticket is not None:
            stage_wait(self._ticket)
            self._ticket = None
        return self._received


def id_exchange(sparse: Jagged, features: int, routes: Sequence[Sequence[int]], rank: int, group: str) -> Jagged:
    """Send each rank the bags of its features and receive one's own features from everyone.

    Three rounds: the number of samples and whether they have weights, which have to be alike; lengths (int32); ids, and
    per-sample weights, if any, without gradients.

    Parameters
    ----------
    sparse : Jagged
        This rank's bags, ``F * B`` of them, feature-major.
    features : int
        ``F``.
    routes : sequence of sequence of int
        ``routes[g]``: indices of the features that rank ``g`` receives, in the order in which it looks them
        up; a feature may go to several ranks, or twice to one.
    rank : int
        This rank's place in the group.
    group : str
        Name of the process group, ``W`` ranks.

    Returns
    -------
    Jagged
        Bags ``(source rank, held feature, sample)``, ``W * S * B`` of them, source-major.

    Raises
    ------
    RuntimeError
        If the offsets do not hold a whole number of samples per feature.
    InputError
        On all ranks, if their batches are unlike.
    """
    flat = [feature for route in routes for feature in route]
    ids, offsets, weights = torch.ops.dmt.id_exchange(
        sparse.ids, sparse.offsets, sparse.weights, features, flat, [len(route) for route in routes], rank, group
    )
    return Jagged(ids, offsets, None if sparse.weights is None else weights)


def select_features(sparse: Jagged, features: int, route: Sequence[int]) -> Jagged:
    """Bags of the features in ``route``, in that order; the same object when that is all of them as they are.

    Parameters
    ----------
    sparse : Jagged
        ``F * B`` bags, feature-major.
    features : int
        ``F``.
    route : sequence of int
        Indices of features, any of them any number of times.
    """
    if list(route) == list(range(features)):
        return sparse
    if sparse.ids.is_cuda and sorted(route) == list(range(features)):
        return reorder_features(sparse, features, route)
    samples = (sparse.offsets.numel() - 1) // features
    lengths = sparse.lengths().view(features, samples)[torch.tensor(route, dtype=torch.int64, device=sparse.ids.device)]
    bounds = sparse.offsets[::samples].tolist() if samples else [0] * (features + 1)

    def select(values: Tensor) -> Tensor:
        pieces = [values[bounds[f] : bounds[f + 1]] for f in route]
        return torch.cat(pieces) if pieces else values[:0]

    offsets = torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 0))
    return Jagged(select(sparse.ids), offsets, None if sparse.weights is None else select(sparse.weights))


def reorder_features(sparse: Jagged, features: int, route: Sequence[int]) -> Jagged:
    """What :func:`select_features` does for all features in another order, without waiting for the device.

    All of the ids stay, so that their number is known; every feature's move by as many places as its bags do.
    """
    order = on_device(tuple(route), sparse.ids.device)
    lengths = sparse.lengths().view(features, -1)
    moved = torch.nn.functional.pad(lengths[order].flatten().cumsum(0), (1, 0))
    sizes = lengths.sum(1)
    ends, moved_ends = sizes.cumsum(0), sizes[order].cumsum(0)
    moved_to = torch.arange(sparse.ids.numel(), device=order.device)
    of = torch.searchsorted(moved_ends[:-1], moved_to, right=True)  # whatever the offsets say, a feature
    places = (moved_to + (ends[order] - moved_ends)[of]).clamp(0, max(0, len(moved_to) - 1))
    return Jagged(sparse.ids[places], moved, None if sparse.weights is None else sparse.weights[places])


def _id_exchange(
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    features: int,
    routes: list[int],
    route_sizes: list[int],
    rank: int,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    samples = (offsets.numel() - 1) // features
    torch._check(
        offsets.numel() - 1 == samples * features,
        lambda: f"id_exchange: {offsets.numel() - 1} bags are no whole number of samples of {features} features",
    )
    world, held = len(route_sizes), route_sizes[rank]
    batch = offsets.new_tensor([samples, batch_form(weighted=weights is not None, chunks=1)]).repeat(world)
    _refuse_unlike(all_to_all(batch, [2] * world, [2] * world, group).view(world, 2).tolist())
    sent = select_features(Jagged(ids, offsets, weights), features, routes)
    received_lengths = all_to_all(
        sent.lengths().to(torch.int32), [held * samples] * world, [size * samples for size in route_sizes], group
    )
    # Two host reads of sizes: what goes to whom, and what comes from whom.
    ends = [samples * end for end in itertools.accumulate(route_sizes, initial=0)]
    sent_ids = sent.offsets[ends].diff().tolist()
    received_ids = received_lengths.view(world, -1).sum(1, dtype=torch.int64).tolist()
    received_offsets = torch.nn.functional.pad(received_lengths.cumsum(0, dtype=torch.int64), (1, 0))
    received_weights = ids.new_empty(0, dtype=torch.float32)
    if sent.weights is not None:
        received_weights = all_to_all(sent.weights, received_ids, sent_ids, group)
    return all_to_all(sent.ids, received_ids, sent_ids, group), received_offsets, received_weights


def _fake(
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    features: int,
    routes: list[int],
    route_sizes: list[int],
    rank: int,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    samples = (offsets.numel() - 1) // features
    received = torch.library.get_ctx().new_dynamic_size()
    bags = len(route_sizes) * route_sizes[rank] * samples
    out_weights = ids.new_empty(0, dtype=torch.float32) if weights is None else weights.new_empty(received)
    return ids.new_empty(received), offsets.new_empty(bags + 1), out_weights


implement("id_exchange", _id_exchange, fake=_fake)
