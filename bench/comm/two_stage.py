"""One all-to-all over all ranks against the two stages, passing through or compressing in between."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bench import baselines
from bench.agreement import agree
from bench.comm.links import SIZES, to_bytes
from bench.registry import Registry, Setting, Work
from dmt_kernels import ops
from dmt_kernels.ops.all_to_all import start_blocks, wait_blocks

DIM = 128  # columns of a member
COMPRESSION = 4


def register(registry: Registry) -> None:
    for size, effort in SIZES.items():
        for compression in (1, COMPRESSION):
            name = f"two_stage/{size}/" + ("pass_through" if compression == 1 else f"linear{compression}x")
            registry.add(name, partial(build, to_bytes(size), compression), effort)


def build(size_bytes: int, compression: int, setting: Setting) -> Work:
    """Forward only. Ours is the two-stage road; what comes out is ``[B, columns]`` on both."""
    mesh = setting.mesh
    assert mesh is not None
    T, R, W = mesh.topology.towers, mesh.topology.members, mesh.topology.world
    B = max(1, size_bytes // (4 * DIM * W))
    generator = torch.Generator().manual_seed(mesh.rank)
    by_rank = torch.randn(W, B, DIM, generator=generator).to(mesh.device)
    by_member = by_rank.view(T, R, B, DIM).transpose(0, 1).contiguous()  # the lookup writes either order
    modules = [_module(t, R, compression).to(mesh.device) for t in range(T)] if compression > 1 else []
    width = R * DIM // compression
    member_widths, tower_widths = [DIM] * R, [width] * T
    tower, peer, flat = mesh.tower.group_name, mesh.peer.group_name, mesh.flat.group_name
    module = modules[mesh.tower_index] if modules else None

    @torch.no_grad()
    def two_stages() -> Tensor:
        return ops.two_stage_all_to_all(by_member, member_widths, tower_widths, tower, peer, module)

    @torch.no_grad()
    def one_stage() -> Tensor:
        return torch.cat(wait_blocks(start_blocks(by_rank, [DIM] * W, flat), [DIM] * W), dim=1)

    peers = baselines.contenders("one_stage", setting.peers, by_rank, mesh.flat)

    @torch.no_grad()
    def check() -> None:
        result, expected = two_stages(), one_stage()
        for name, peer in peers.items():
            agree(f"flat and {name}", peer(), expected, exact=True)
        if modules:
            towers = expected.split(R * DIM, dim=1)
            expected = torch.cat([of_tower(block) for of_tower, block in zip(modules, towers, strict=True)], dim=1)
        agree("two stages and one", result, expected, exact=not modules)

    return Work(two_stages, {"flat": one_stage, **peers}, check)


def _module(tower: int, members: int, compression: int) -> nn.Module:
    """The same on every rank that asks for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tower)
        return nn.Linear(members * DIM, members * DIM // compression)
