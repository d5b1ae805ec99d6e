"""Ids to the ranks that look them up: checked and in small messages, against the op, unchecked and as int32."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch

from bench.agreement import agree
from bench.ops.id_codec import SHAPES, make_bags, make_plan
from bench.registry import DEFAULT, FULL, QUICK, Registry, Setting, Work
from dmt_kernels import ops
from dmt_kernels.spec import Jagged


def register(registry: Registry) -> None:
    for name in SHAPES:
        for chunks in (1, 4):
            effort = (QUICK if chunks == 1 else DEFAULT) if name == "F16_B1024_L4" else FULL
            registry.add(f"id_exchange/{name}/n{chunks}", partial(build, name, chunks), effort)


def build(name: str, chunks: int, setting: Setting) -> Work:
    mesh = setting.mesh
    assert mesh is not None
    world, features = mesh.topology.world, SHAPES[name].features
    host = make_bags(SHAPES[name])
    bags = Jagged(host.ids.to(mesh.device), host.offsets.to(mesh.device))
    rows = make_plan(SHAPES[name], chunks)[0]
    dealt = tuple(tuple(range(features * g // world, features * (g + 1) // world)) for g in range(world))
    routes = ops.IdRoutes(tuple(rows), dealt, mesh.rank, mesh.ids.group_name)

    def small() -> ops.ReceivedIds:
        return ops.IdExchange(bags, routes, chunks=chunks).wait()

    def plain() -> Jagged:
        narrow = dataclasses.replace(bags, ids=bags.ids.to(torch.int32))
        return ops.id_exchange(narrow, features, dealt, mesh.rank, mesh.ids.group_name)

    def check() -> None:
        received, expected = ops.IdExchange(bags, routes).wait().bags, plain()
        agree("ids", received.ids, expected.ids, exact=True)
        agree("offsets", received.offsets, expected.offsets, exact=True)

    return Work(small, {"op": plain}, check)
