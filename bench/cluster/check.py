"""Whether the contenders train the same models: no times without that."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from bench.agreement import Disagreement, agree
from bench.cluster.problem import Problem
from bench.cluster.steps import Ours
from bench.cluster.variants import Variant, twin_of
from bench.registry import Run
from dmt_kernels.comm import Mesh
from dmt_kernels.spec import WireFormat

STEPS = 3
HALF = WireFormat.FP16.error_bound().of_value


def check(steps: dict[str, Run], variants: Sequence[Variant], problem: Problem, mesh: Mesh) -> str | None:
    """Train all contenders for a few steps and return what is wrong with one of them, on any rank."""
    complaint = None
    before = {name: step.outputs() for name, step in steps.items() if isinstance(step, Ours)}
    losses = {name: _losses(step, mesh) for name, step in steps.items()}
    after = {name: step.outputs() for name, step in steps.items() if isinstance(step, Ours)}
    try:
        for variant in variants:
            name, twin = variant.name, twin_of(variant, variants)
            exact = variant.peer is None and not variant.tower_module  # roads of ours, and nothing multiplied
            if variant is twin:
                _agree_with_one_process(variant, problem, losses[name], mesh)
            elif variant.exact:
                agree(f"losses, {twin.name} and {name}", losses[name], losses[twin.name], exact=exact)
            else:
                bound = HALF if variant.peer else output_bound(variant, problem)
                agree_within(f"losses, {twin.name} and {name}", losses[name], losses[twin.name], bound)
            if variant.peer is None and variant is not twin:
                what = f"outputs, {twin.name} and {name}"
                if variant.exact:
                    agree(f"first {what}", before[name], before[twin.name], exact=exact)
                    if exact:
                        agree(f"{what} after training", after[name], after[twin.name], exact=True)
                else:
                    # Not after training: Adam makes a whole step of what rounding leaves of a small gradient.
                    agree_within(f"first {what}", before[name], before[twin.name], output_bound(variant, problem))
    except Disagreement as error:
        complaint = str(error)
    complaints: list[str | None] = [None] * problem.world
    dist.all_gather_object(complaints, complaint, group=mesh.dense)
    return next((f"rank {g}: {text}" for g, text in enumerate(complaints) if text is not None), None)


def output_bound(variant: Variant, problem: Problem) -> float:
    """How far outputs may be off, as a share of their norm.

    A row's error is at most `of_value` of it and `of_maximum` of its largest number in every column; each stage adds
    its own. A tower module may stretch the error of the stage before it more than the rows: twice as much is allowed.
    """
    formats = [variant.payload] + ([variant.tower_payload] if variant.road == "sptt" else [])
    width = problem.tables // problem.hosts * problem.dim
    bounds = [payload.error_bound() for payload in formats]
    share = sum(bound.of_value + bound.of_maximum * math.sqrt(width) for bound in bounds)
    return share * (2 if variant.tower_module else 1)


def agree_within(what: str, actual: Tensor, expected: Tensor, bound: float) -> None:
    """Raise :class:`Disagreement` unless the distance is at most this share of what was expected."""
    off = float((actual - expected).norm() / expected.norm())
    if not off <= bound:
        raise Disagreement(f"{what}: {off:.2g} of the norm apart, {bound:.2g} allowed")


def _losses(step: Run, mesh: Mesh) -> Tensor:
    """Global losses; a peer returns its rank's own mean."""
    losses = torch.stack([step() for _ in range(STEPS)])
    if not isinstance(step, Ours):
        dist.all_reduce(losses, group=mesh.dense)
        losses /= mesh.topology.world
    return losses


def _agree_with_one_process(variant: Variant, problem: Problem, losses: Tensor, mesh: Mesh) -> None:
    if mesh.rank == 0:
        alone = Ours(variant, problem, None)
        expected = torch.stack([alone() for _ in range(STEPS)])
        agree(f"losses, ranks and one process, {variant.name}", losses, expected)
