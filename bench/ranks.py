"""The suites that need ranks: on those that torchrun started, or on a few of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from bench import baselines, registry
from bench.agreement import Disagreement
from bench.registry import Setting
from bench.runner import run_case
from dmt_kernels.comm import Mesh, build_mesh
from dmt_kernels.train.assemble import choose_device
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.launch import launched, run_ranks

LOCAL_RANKS = 4


def run_suite(
    suite: str, filters: Sequence[str], effort: int, budget_s: float, towers: int | None, peers: Sequence[str]
) -> dict[str, Any]:
    """Run a distributed suite and return, on rank 0, its ``results``, ``failures``, ``facts`` and ``obstacles``."""
    world = int(os.environ["WORLD_SIZE"]) if launched() else LOCAL_RANKS
    return run_ranks(_on_rank, suite, list(filters), effort, budget_s, towers, tuple(peers), world=world)


def _on_rank(
    suite: str, filters: list[str], effort: int, budget_s: float, towers: int | None, peers: tuple[str, ...]
) -> dict[str, Any]:
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if towers is None and world == local and world % 2 == 0:
        towers = 2  # one host alone: let it be two
    device = _device(suite, towers or world // local, world // (towers or world // local))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend)
    mesh = build_mesh(towers, None if towers else local, device=device)
    obstacles = _obstacles(peers, mesh)
    setting = Setting(tuple(name for name in peers if name not in obstacles), mesh)
    results, failures = [], {}
    for case in registry.load(suite).select(filters, effort):
        try:
            results.append(run_case(case, setting, None, budget_s).to_json())
        except Disagreement as error:
            failures[case.name] = str(error)
    topology = mesh.topology
    ranks = f"{topology.towers} towers x {topology.members} members on {world // local} host(s), {backend}"
    facts = {"ranks": ranks, "threads per rank": str(torch.get_num_threads())}
    dist.destroy_process_group()
    return {"results": results, "failures": failures, "facts": facts, "obstacles": obstacles}


def _obstacles(peers: Sequence[str], mesh: Mesh) -> dict[str, str]:
    """What keeps a peer away, on any rank: if it took part on the others, they would wait for this one."""
    everywhere: list[dict[str, str | None]] = [{} for _ in range(mesh.topology.world)]
    dist.all_gather_object(everywhere, {name: baselines.obstacle(name) for name in peers}, group=mesh.dense)
    return {name: text for found in reversed(everywhere) for name, text in found.items() if text is not None}


def _device(suite: str, towers: int, members: int) -> torch.device:
    if suite == "train":  # where the ops run
        return choose_device(TrainConfig(towers=towers, members=members))
    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")
