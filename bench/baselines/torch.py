"""What one writes in PyTorch alone: a bag per feature, side by side, and a product behind them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from bench.bags import Bags
from bench.timing import Run
from dmt_kernels.spec import Jagged, WireFormat

_CASTS = {
    WireFormat.FP32: torch.float32,
    WireFormat.BF16: torch.bfloat16,
    WireFormat.FP16: torch.float16,
    WireFormat.FP8: torch.float8_e4m3fn,
    WireFormat.INT8: torch.int8,
}
# What a row's maximum is scaled to.
_LARGEST = {WireFormat.FP16: 2.0**14, WireFormat.FP8: 448.0, WireFormat.INT8: 127.0}


def embedding_bag(bags: Bags) -> Run:
    lookups = _lookups(bags)

    @torch.no_grad()
    def run() -> Tensor:
        return torch.cat([F.embedding_bag(**lookup) for lookup in lookups], dim=1)

    return run


def tower_pool(bags: Bags, weight: Tensor, products: torch.dtype) -> Run:
    pooled = embedding_bag(bags)
    return lambda: torch.mm(pooled().to(products), weight.to(products).t()).to(weight.dtype)


def empty_batch(tables: list[Tensor]) -> Run:
    ids, offsets = torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)

    def run() -> Tensor:
        bags = [F.embedding_bag(ids, t, offsets, mode="sum", include_last_offset=True) for t in tables]
        return torch.cat(bags, dim=1)

    return run


def empty_tower(tables: list[Tensor], weight: Tensor) -> Run:
    pooled = empty_batch(tables)
    return lambda: torch.mm(pooled(), weight.t())


def wire_encode(x: Tensor, wire_format: WireFormat) -> Run | None:
    """The bytes of a cast; in a scaled format, of numbers over a scale, with it behind them."""
    dtype = _CASTS[wire_format]
    if x.shape[1] * dtype.itemsize % 4:
        return None  # rows would need padding
    if not wire_format.is_scaled:
        return lambda: x.to(dtype, copy=True).view(torch.uint8)

    def run() -> Tensor:
        scale = x.abs().amax(1, keepdim=True) / _LARGEST[wire_format]
        scaled = x / scale
        payload = (scaled.round() if dtype == torch.int8 else scaled).to(dtype)
        return torch.cat([payload.view(torch.uint8), scale.view(torch.uint8)], dim=1)

    return run


def wire_decode(message: Tensor, dim: int, wire_format: WireFormat) -> Run | None:
    dtype = _CASTS[wire_format]
    if dim * dtype.itemsize % 4:
        return None
    if not wire_format.is_scaled:
        return lambda: message.view(dtype).to(torch.float32, copy=True)
    return lambda: message[:, :-4].view(dtype).float() * message[:, -4:].view(torch.float32)


def stage(blocks: list[Tensor], in_place: bool, group: dist.ProcessGroup | None = None) -> Run:
    """The blocks of one buffer as it is; others by way of one."""
    buffer = torch.cat([block.flatten() for block in blocks])
    arrived, sizes = torch.empty_like(buffer), [block.numel() for block in blocks]
    pieces = [piece.view_as(block) for piece, block in zip(arrived.split(sizes), blocks, strict=True)]
    out = pieces if in_place else [torch.empty_like(block) for block in blocks]

    def run() -> list[Tensor]:
        sent = buffer if in_place else torch.cat([block.view(-1) for block in blocks])
        work = dist.all_to_all_single(arrived, sent, sizes, sizes, group=group, async_op=True)
        assert work is not None
        work.wait()
        if not in_place:
            torch._foreach_copy_(out, pieces)
        return out

    return run


def one_stage(by_rank: Tensor, group: dist.ProcessGroup) -> Run:
    """``[W, B, D]`` of all samples to ``[B, W * D]`` of the own."""
    arrived = torch.empty_like(by_rank)

    @torch.no_grad()
    def run() -> Tensor:
        dist.all_to_all_single(arrived, by_rank, group=group)
        return torch.cat(arrived.unbind(0), dim=1)

    return run


def id_encode(bags: Jagged, rows: list[int]) -> Run:
    """Lengths and ids as int32, in one chunk and where features lie in the order of the ranks: nothing moves."""
    limits = torch.tensor(rows)

    def run() -> tuple[Tensor, Tensor]:
        samples = (len(bags.offsets) - 1) // len(rows)
        limit = limits.repeat_interleave(bags.offsets[::samples].diff())
        missing = (bags.ids < 0) | (bags.ids >= limit)
        return bags.lengths().to(torch.int32), bags.ids.masked_fill(missing, -1).to(torch.int32)

    return run


def id_decode(lengths: Tensor, ranks: int) -> Run:
    """Offsets of lengths that came as int32; ids are where they should be."""

    def run() -> Tensor:
        lengths.view(ranks, -1).sum(1, dtype=torch.int64).tolist()
        return F.pad(lengths.cumsum(0, dtype=torch.int64), (1, 0))

    return run


def _lookups(bags: Bags) -> list[dict]:
    samples = bags.spec.shape.samples
    lookups = []
    for f, table in enumerate(bags.tables):
        offsets = bags.offsets[f * samples : (f + 1) * samples + 1]
        here = slice(int(offsets[0]), int(offsets[-1]))
        lookups.append(
            {
                "input": bags.ids[here],
                "weight": table,
                "offsets": (offsets - offsets[0]).to(bags.ids.dtype),
                "mode": bags.options["pooling"],
                "per_sample_weights": None if bags.weights is None else bags.weights[here].to(table.dtype),
                "include_last_offset": True,
            }
        )
    return lookups
