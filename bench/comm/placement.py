"""A training step with linear tower modules in slices at the owners of tables, against whole ones at the members."""

from __future__ import annotations

from functools import partial

from bench.agreement import agree
from bench.cluster.problem import Problem
from bench.cluster.steps import Ours
from bench.cluster.variants import Variant
from bench.registry import DEFAULT, QUICK, Registry, Setting, Work

CHECKED_STEPS = 3


def register(registry: Registry) -> None:
    for compression, effort in ((4, QUICK), (8, DEFAULT)):
        registry.add(f"placement/linear{compression}x", partial(build, compression), effort)


def build(compression: int, setting: Setting) -> Work:
    """The emulated hosts' problem without their over-arch."""
    mesh = setting.mesh
    assert mesh is not None
    problem = Problem(hosts=mesh.topology.towers, members=mesh.topology.members, compression=compression)
    member, owner = (
        Ours(Variant(place, "sptt", over_arch=False, tower_module=True, options={"placement": place}), problem, mesh)
        for place in ("member", "owner")
    )

    def check() -> None:
        for step in range(CHECKED_STEPS):
            agree(f"loss of step {step}, owner and member", owner(), member())

    return Work(owner, {"member": member}, check)
