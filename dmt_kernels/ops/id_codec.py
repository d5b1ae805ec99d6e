"""Bags of ids to and from the messages of an id exchange: ``torch.ops.dmt.id_encode`` and its other half.

Two messages go to every rank. That of *lengths* begins with the number of ids and that of samples, 8 bytes each, 1 if
there are weights and the number of chunks, 4 bytes each; then it has a byte for every bag, 255 for 255 ids or more.
That of *ids*, the payload, has the lengths of those long bags, 8 bytes each; then ids, in as few bytes as hold the
destination's rows, all ones for a missing id; then per-sample weights, float32. Bags of both are in the order (chunk,
feature of the route, sample in the chunk).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.ops._composition import implement
from dmt_kernels.ops.reference import id_codec as reference
from dmt_kernels.spec import Jagged

HEADER_BYTES, batch_form = reference.HEADER_BYTES, reference.batch_form


def bytes_per_id(rows: Sequence[int]) -> int:
    """1, 2, 4 or 8: as few bytes as hold every row of tables with so many rows, and a code for a missing id."""
    most = max(rows, default=0)
    return next(width for width in (1, 2, 4, 8) if most < 2 ** (8 * width))


def id_encode(
    sparse: Jagged,
    rows: Sequence[int],
    routes: Sequence[int],
    route_sizes: Sequence[int],
    id_bytes: Sequence[int],
    chunks: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make the messages that carry one rank's bags to all ranks.

    Parameters
    ----------
    sparse : Jagged
        ``F * B`` bags, feature-major. An id that is no row of its table becomes a missing id.
    rows : sequence of F ints
        Rows of each feature's table.
    routes, route_sizes : sequence of int
        Features that each of ``W`` ranks looks up, rank after rank in one list, and how many are whose.
    id_bytes : sequence of W ints
        Bytes of an id in the message to each rank: :func:`bytes_per_id` of the rows that it looks up, or more.
    chunks : int
        Samples are sent in so many equal chunks, one after the other.

    Returns
    -------
    lengths, payload : Tensor, uint8
        The messages, rank after rank; a rank's lengths take ``HEADER_BYTES + route_size * B`` bytes.
    sizes : Tensor [W + 1], int64, on the CPU
        Bytes of the payload for each rank, and how many of the ids in it are missing.

    Raises
    ------
    RuntimeError
        Bags, routes or bytes that do not fit together.
    """
    return torch.ops.dmt.id_encode(
        sparse.ids, sparse.offsets, sparse.weights, rows, routes, route_sizes, id_bytes, chunks
    )


def id_payload_bytes(lengths: Tensor, world: int, item_bytes: int) -> Tensor:
    """Tell how many bytes of ids will come, from the lengths that came.

    Parameters
    ----------
    lengths : Tensor, uint8
        Messages of equal size from ``W`` ranks.
    world : int
        ``W``.
    item_bytes : int
        Bytes of an id and its weight.

    Returns
    -------
    Tensor [W], int64, on the CPU
    """
    return torch.ops.dmt.id_payload_bytes(lengths, world, item_bytes)


def id_decode(
    lengths: Tensor,
    payload: Tensor,
    world: int,
    id_bytes: int,
    *,
    weighted: bool = False,
    chunks: int = 1,
    dtype: torch.dtype = torch.int32,
) -> list[Jagged]:
    """Make bags of the messages that came from all ranks.

    Parameters
    ----------
    lengths, payload : Tensor, uint8
        Messages from ``W`` ranks, one after the other.
    world : int
        ``W``.
    id_bytes : int
        Bytes of an id.
    weighted : bool
        Whether there are weights.
    chunks : int
        As the senders had it.
    dtype : torch.dtype
        Of the ids: int32 or int64.

    Returns
    -------
    list of Jagged
        Bags ``(source, chunk, feature, sample in the chunk)``; after them, if there are several chunks, those of every
        chunk, ``(source, feature, sample in the chunk)``.

    Raises
    ------
    RuntimeError
        Messages that do not fit together.
    """
    parts = torch.ops.dmt.id_decode(lengths, payload, world, id_bytes, weighted, chunks, dtype)
    step = 3 if weighted else 2
    return [Jagged(*parts[i : i + step]) for i in range(0, len(parts), step)]


def _fake_encode(
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    rows: Sequence[int],
    routes: Sequence[int],
    route_sizes: Sequence[int],
    id_bytes: Sequence[int],
    chunks: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    lengths, payload = (ids.new_empty(context.new_dynamic_size(), dtype=torch.uint8) for _ in range(2))
    return lengths, payload, torch.empty(len(route_sizes) + 1, dtype=torch.int64)


def _fake_payload_bytes(lengths: Tensor, world: int, item_bytes: int) -> Tensor:
    return torch.empty(world, dtype=torch.int64)


def _fake_decode(
    lengths: Tensor,
    payload: Tensor,
    world: int,
    id_bytes: int,
    weighted: bool,
    chunks: int = 1,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    context = torch.library.get_ctx()
    result = []
    for _ in range(1 if chunks == 1 else 1 + chunks):
        ids = payload.new_empty(context.new_dynamic_size(), dtype=dtype or torch.int32)
        result += [ids, payload.new_empty(context.new_dynamic_size(), dtype=torch.int64)]
        if weighted:
            result.append(payload.new_empty(ids.shape, dtype=torch.float32))
    return result


# On a device without kernels of ours the oracle does the work.
implement("id_encode", reference.id_encode, fake=_fake_encode)
implement("id_payload_bytes", reference.id_payload_bytes, fake=_fake_payload_bytes)
implement("id_decode", reference.id_decode, fake=_fake_decode)
