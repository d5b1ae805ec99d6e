"""A bare stage, blocks in place, against torch's own all-to-all over all ranks: latency, where messages are small."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from bench.agreement import agree
from bench.comm.links import message, to_bytes
from bench.registry import DEFAULT, QUICK, Registry, Setting, Work
from dmt_kernels import ops

SIZES = {"64B": QUICK, "16KiB": DEFAULT, "256KiB": DEFAULT, "1MiB": DEFAULT}  # to each rank


def register(registry: Registry) -> None:
    for size, effort in SIZES.items():
        registry.add(f"stage/{size}", partial(build, to_bytes(size)), effort)


def build(size_bytes: int, setting: Setting) -> Work:
    mesh = setting.mesh
    assert mesh is not None
    world, count = mesh.topology.world, size_bytes // 4
    sent = torch.stack([message(mesh.rank, other, count, mesh.device) for other in range(world)])
    received, by_torch = torch.empty_like(sent), torch.empty_like(sent)
    leaving, arriving = list(sent.split(1)), list(received.split(1))
    group = mesh.flat.group_name

    def stage() -> Tensor:
        ops.stage_wait(ops.stage_start(leaving, arriving, group))
        return received

    def all_to_all_single() -> Tensor:
        dist.all_to_all_single(by_torch, sent, group=mesh.flat)
        return by_torch

    def check() -> None:
        agree("a stage and all_to_all_single", stage(), all_to_all_single(), exact=True)

    return Work(stage, {"all_to_all_single": all_to_all_single}, check, work_bytes=4 * count * (world - 1))
