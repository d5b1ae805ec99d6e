"""Oracle of the messages of an id exchange, in plain PyTorch; and what runs on devices without kernels of their own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

HEADER_BYTES = 24  # a message of lengths begins with its number of ids, the samples, and :func:`batch_form`
LONG = 255  # a bag of so many ids or more: its length follows, in 8 bytes, at the head of the message of ids


def batch_form(*, weighted: bool, chunks: int) -> int:
    """One number, 8 bytes: whether there are weights, and in how many chunks samples come."""
    return weighted | chunks << 32


def id_encode(
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    rows: Sequence[int],
    routes: Sequence[int],
    route_sizes: Sequence[int],
    id_bytes: Sequence[int],
    chunks: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Messages of bags; arguments and result as in `dmt_kernels.ops.id_encode`."""
    samples = (offsets.numel() - 1) // max(1, len(rows)) // chunks  # of a chunk
    all_lengths = offsets.diff().view(len(rows), chunks, samples)
    bounds = offsets[::samples].tolist() if samples else [0] * (len(rows) * chunks + 1)
    messages, payloads, missing = [ids.new_empty(0, dtype=torch.uint8)], [ids.new_empty(0, dtype=torch.uint8)], 0
    sizes = []
    ends = itertools.accumulate(route_sizes)
    for end, size, width in zip(ends, route_sizes, id_bytes, strict=True):
        route = list(routes[end - size : end])
        lengths = all_lengths[route].transpose(0, 1).flatten()
        form = batch_form(weighted=weights is not None, chunks=chunks)
        header = torch.stack([lengths.sum(), *lengths.new_tensor([samples * chunks, form])])
        messages += [_to_bytes(header, 8), _to_bytes(lengths.clamp(max=LONG), 1)]
        payload = [_to_bytes(lengths[lengths >= LONG], 8)]
        pieces = [(f, slice(*bounds[f * chunks + c :][:2])) for c in range(chunks) for f in route]
        for f, piece in pieces:
            found = ids[piece].long()
            is_row = (found >= 0) & (found < rows[f])
            missing += int((~is_row).sum())
            payload.append(_to_bytes(torch.where(is_row, found, -1), width))
        if weights is not None:
            payload += [weights[piece].detach().float().view(torch.uint8) for _, piece in pieces]
        sizes.append(sum(part.numel() for part in payload))
        payloads += payload
    return torch.cat(messages), torch.cat(payloads), torch.tensor([*sizes, missing])


def id_payload_bytes(lengths: Tensor, world: int, item_bytes: int) -> Tensor:
    """Sizes of the messages of ids; arguments and result as in `dmt_kernels.ops.id_payload_bytes`."""
    counts, bags = _split_lengths(lengths, world)
    return (8 * (bags == LONG).sum(1) + item_bytes * counts).cpu()


def id_decode(
    lengths: Tensor,
    payload: Tensor,
    world: int,
    id_bytes: int,
    weighted: bool,
    chunks: int = 1,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Bags of messages; arguments and result as in `torch.ops.dmt.id_decode`."""
    counts, bags = _split_lengths(lengths, world)
    long_counts = (bags == LONG).sum(1).tolist()
    ids, weights = [], []
    true_lengths = bags.long()
    start = 0
    for source, (count, longs) in enumerate(zip(counts.tolist(), long_counts, strict=True)):
        head = 8 * longs
        sizes = [head, count * id_bytes, 4 * count * weighted]
        long_bytes, id_part, weight_part = payload[start : start + sum(sizes)].split(sizes)
        true_lengths[source, bags[source] == LONG] = _from_bytes(long_bytes, 8)
        ids.append(_from_bytes(id_part, id_bytes).to(dtype or torch.int32))
        weights.append(weight_part.clone().view(torch.float32))
        start += sum(sizes)
    # Pieces (source, chunk), in the order in which they came; then those of every chunk.
    blocks = true_lengths.view(world * chunks, bags.shape[1] // chunks)
    piece_sizes = blocks.sum(1).tolist()
    id_pieces, weight_pieces = torch.cat(ids).split(piece_sizes), None
    if weighted:
        weight_pieces = torch.cat(weights).split(piece_sizes)
    orders = [list(range(world * chunks))]
    if chunks > 1:
        orders += [list(range(c, world * chunks, chunks)) for c in range(chunks)]
    result = []
    for order in orders:
        ends = torch.cat([blocks.new_zeros(1), blocks[order].flatten().cumsum(0)])
        result += [torch.cat([id_pieces[p] for p in order]), ends]
        if weight_pieces is not None:
            result.append(torch.cat([weight_pieces[p] for p in order]))
    return result


def _split_lengths(lengths: Tensor, world: int) -> tuple[Tensor, Tensor]:
    """Numbers of ids ``[W]`` int64, and lengths ``[W, bags]`` uint8."""
    by_source = lengths.view(world, -1)
    return _from_bytes(by_source[:, :8].flatten(), 8), by_source[:, HEADER_BYTES:]


def _to_bytes(numbers: Tensor, width: int) -> Tensor:
    """The low bytes of every number, lowest first; of -1 all ones."""
    return numbers.long().contiguous().view(torch.uint8).view(numbers.numel(), 8)[:, :width].flatten()


def _from_bytes(bytes: Tensor, width: int) -> Tensor:
    """Int64 numbers; -1 where all bytes are ones."""
    numbers = bytes.view(bytes.numel() // width, width)
    wide = torch.nn.functional.pad(numbers, (0, 8 - width)).flatten().view(torch.int64)
    return wide.where((numbers != 255).any(1), -1)
