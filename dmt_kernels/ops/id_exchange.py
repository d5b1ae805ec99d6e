"""Brings every rank the ids of the features whose shards it holds, from all ranks.

Letters: ``W`` ranks, ``F`` features of the batch, ``B`` samples per rank, ``S`` features that this rank holds.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.ops._composition import implement
from dmt_kernels.ops.all_to_all import all_to_all
from dmt_kernels.spec import Jagged


def id_exchange(sparse: Jagged, features: int, routes: Sequence[Sequence[int]], rank: int, group: str) -> Jagged:
    """Send each rank the bags of its features and receive one's own features from everyone.

    Two rounds: lengths (int32), then ids (and per-sample weights, if any).

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
    samples = (sparse.offsets.numel() - 1) // features
    lengths = sparse.lengths().view(features, samples)[torch.tensor(route, dtype=torch.int64, device=sparse.ids.device)]
    bounds = sparse.offsets[::samples].tolist() if samples else [0] * (features + 1)

    def select(values: Tensor) -> Tensor:
        pieces = [values[bounds[f] : bounds[f + 1]] for f in route]
        return torch.cat(pieces) if pieces else values[:0]

    offsets = torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 0))
    return Jagged(select(sparse.ids), offsets, None if sparse.weights is None else select(sparse.weights))


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
