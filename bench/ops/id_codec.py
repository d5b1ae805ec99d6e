"""Bags of ids to and from the messages of an id exchange, against a check, a cast and a sum of lengths in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench import baselines
from bench.agreement import Disagreement, agree
from bench.ceilings import Ceilings
from bench.registry import DEFAULT, FULL, QUICK, Registry, Setting, Work
from dmt_kernels import ops
from dmt_kernels.ops.reference import id_codec as oracle
from dmt_kernels.spec import Jagged

RANKS = 4  # that the features are dealt out to


@dataclass(frozen=True)
class Shape:
    features: int
    samples: int
    length: int
    rows: int


SHAPES = {
    "F16_B1024_L4": Shape(16, 1024, 4, 20_000),
    "F24_B4096_L1": Shape(24, 4096, 1, 5_000_000),
    "F8_B2048_L20": Shape(8, 2048, 20, 500_000),
    "tiny": Shape(4, 12, 3, 200),
}


def register(registry: Registry) -> None:
    for name in SHAPES:
        for chunks in (1, 2, 4):
            common = name == "F16_B1024_L4"
            effort = (QUICK if chunks == 1 else DEFAULT) if common else FULL
            registry.add(f"id_encode/{name}/n{chunks}", partial(build_encode, name, chunks), effort)
            registry.add(f"id_decode/{name}/n{chunks}", partial(build_decode, name, chunks), effort)


def build_encode(name: str, chunks: int, setting: Setting) -> Work:
    bags, plan = make_bags(SHAPES[name]), make_plan(SHAPES[name], chunks)

    def ours() -> tuple[Tensor, Tensor, Tensor]:
        return ops.id_encode(bags, *plan)

    peers = baselines.contenders("id_encode", setting.peers, bags, plan[0])

    def check() -> None:
        expected = oracle.id_encode(bags.ids, bags.offsets, None, *plan)
        for mine, right in zip(ours(), expected, strict=True):
            agree("ours and the oracle", mine, right, exact=True)
        for peer in peers.values():
            peer()

    lengths, payload, _ = ours()
    moved = size_bytes(bags.ids, bags.offsets, lengths, payload)
    return Work(ours, peers, check, partial(copy_floor, moved), work_bytes=moved)


def build_decode(name: str, chunks: int, setting: Setting) -> Work:
    """What a rank would receive if all had sent the same."""
    bags, plan = make_bags(SHAPES[name]), make_plan(SHAPES[name], chunks)
    lengths, payload, sizes = ops.id_encode(bags, *plan)
    lengths = lengths[: len(lengths) // RANKS].repeat(RANKS)
    payload = payload[: int(sizes[0])].repeat(RANKS)
    id_bytes = plan[3][0]

    def ours() -> list[Jagged]:
        ops.id_payload_bytes(lengths, RANKS, id_bytes)
        return ops.id_decode(lengths, payload, RANKS, id_bytes, chunks=chunks)

    true_lengths = ours()[0].lengths().to(torch.int32)
    peers = baselines.contenders("id_decode", setting.peers if chunks == 1 else (), true_lengths, RANKS)

    def check() -> None:
        expected = oracle.id_decode(lengths, payload, RANKS, id_bytes, False, chunks)
        parts = [part for jagged in ours() for part in (jagged.ids, jagged.offsets)]
        for mine, right in zip(parts, expected, strict=True):
            agree("ours and the oracle", mine, right, exact=True)
        for who, peer in peers.items():
            if not torch.equal(peer(), ours()[0].offsets):
                raise Disagreement(f"{who}: other offsets")

    moved = size_bytes(lengths, payload, *(part for jagged in ours() for part in (jagged.ids, jagged.offsets)))
    return Work(ours, peers, check, partial(copy_floor, moved), work_bytes=moved)


def make_bags(shape: Shape) -> Jagged:
    generator = torch.Generator().manual_seed(11)
    bags = shape.features * shape.samples
    ids = torch.randint(0, shape.rows, (bags * shape.length,), generator=generator)
    return Jagged(ids, torch.arange(bags + 1) * shape.length)


def make_plan(shape: Shape, chunks: int) -> tuple[list[int], list[int], list[int], list[int], int]:
    rows = [shape.rows] * shape.features
    width = ops.bytes_per_id(rows)
    return rows, list(range(shape.features)), [shape.features // RANKS] * RANKS, [width] * RANKS, chunks


def size_bytes(*tensors: Tensor) -> float:
    return float(sum(tensor.numel() * tensor.itemsize for tensor in tensors))


def copy_floor(moved_bytes: float, ceilings: Ceilings) -> dict[str, float]:
    return {"copy": ceilings.copy(int(moved_bytes / 2))}
