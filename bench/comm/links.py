"""What the links carry: an all-to-all inside each tower, between peers, and over all ranks, by message size."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.agreement import agree
from bench.registry import DEFAULT, FULL, QUICK, Registry, Setting, Work
from dmt_kernels.ops.all_to_all import all_to_all

SIZES = {"64KiB": DEFAULT, "1MiB": QUICK, "16MiB": QUICK, "64MiB": FULL, "256MiB": FULL}  # that a rank sends, in all
STAGES = ("tower", "peer", "flat")


def register(registry: Registry) -> None:
    for size, effort in SIZES.items():
        for stage in STAGES:
            registry.add(f"link/{stage}/{size}", partial(build, stage, to_bytes(size)), effort)


def build(stage: str, size_bytes: int, setting: Setting) -> Work:
    """GB/s are those that one rank sends to others; all towers, or all peer groups, are at it at once."""
    mesh = setting.mesh
    assert mesh is not None
    topology = mesh.topology
    ranks = {
        "tower": topology.tower_ranks(mesh.tower_index),
        "peer": topology.peer_ranks(mesh.member_index),
        "flat": list(range(topology.world)),
    }[stage]
    group = getattr(mesh, stage).group_name
    piece = size_bytes // 4 // len(ranks)
    splits = [piece] * len(ranks)
    pieces = [message(mesh.rank, other, piece, mesh.device) for other in ranks]

    def ours() -> Tensor:
        return all_to_all(sent, splits, splits, group)

    def check() -> None:
        expected = torch.cat([message(other, mesh.rank, piece, mesh.device) for other in ranks])
        agree("what arrived and what was sent", ours(), expected, exact=True)

    sent = torch.cat(pieces)
    return Work(ours, {}, check, work_bytes=4 * piece * (len(ranks) - 1))


def message(source: int, destination: int, count: int, device: torch.device) -> Tensor:
    """Numbers that no other pair of ranks sends."""
    start = float(1000 * source + destination)
    return torch.arange(count, dtype=torch.float32, device=device).remainder_(997).add_(start)


def to_bytes(size: str) -> int:
    unit = size.lstrip("0123456789")
    return int(size.removesuffix(unit)) * {"B": 1, "KiB": 2**10, "MiB": 2**20}[unit]
