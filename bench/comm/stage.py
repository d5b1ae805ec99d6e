"""A bare stage, blocks in place, against torch's own all-to-all over all ranks: latency, where messages are small."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench import baselines
from bench.agreement import agree
from bench.comm.links import message, to_bytes
from bench.registry import DEFAULT, QUICK, Registry, Setting, Work
from dmt_kernels import ops

SIZES = {"64B": QUICK, "16KiB": DEFAULT, "256KiB": DEFAULT, "1MiB": DEFAULT}  # to each rank


def register(registry: Registry) -> None:
    for size, effort in SIZES.items():
        registry.add(f"stage_start/{size}", partial(build, to_bytes(size)), effort)


def build(size_bytes: int, setting: Setting) -> Work:
    mesh = setting.mesh
    assert mesh is not None
    world, count, group = mesh.topology.world, size_bytes // 4, mesh.flat
    blocks = list(torch.stack([message(mesh.rank, other, count, mesh.device) for other in range(world)]).split(1))
    out = list(torch.empty(world, count, device=mesh.device).split(1))
    peers = baselines.contenders("stage", setting.peers, blocks, True, group)

    def ours() -> list[Tensor]:
        ops.stage_wait(ops.stage_start(blocks, out, group.group_name))
        return out

    def check() -> None:
        expected = torch.stack([message(other, mesh.rank, count, mesh.device) for other in range(world)])
        agree("what arrived and what was sent", torch.cat(ours()), expected, exact=True)
        for name, peer in peers.items():
            agree(f"ours and {name}", torch.cat(peer()), expected, exact=True)

    return Work(ours, peers, check, work_bytes=4 * count * (world - 1))
