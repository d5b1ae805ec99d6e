"""Whether the contenders train the same models: no times without that."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.agreement import Disagreement, agree
from bench.cluster.problem import Problem
from bench.cluster.rank import TRAINED_STEPS
from bench.cluster.steps import Ours
from bench.cluster.variants import VARIANTS, Variant, twin_of
from dmt_kernels.spec import WireFormat

HALF = WireFormat.FP16.error_bound().of_value
# Of outputs after training under an over-arch. Measured where training moves them by more than their norm: at most 0.3
# apart, and at least 0.59 if the gradients between hosts are lost; at the default sizes at most 0.14 apart, and 0.18 or
# more if those gradients are halved.
OTHER_SIZES, DEFAULT_SIZES = 0.45, 0.16


def complaint(found: Mapping[str, list[dict[str, NDArray[np.float32]]]], problem: Problem) -> str | None:
    """What is wrong with one of the contenders, by what their ranks found in a few steps (`Rank.train`)."""
    for variant in (variant for variant in VARIANTS if variant.name in found):
        twin = twin_of(variant, VARIANTS)
        for g, pair in enumerate(zip(found[variant.name], found[twin.name], strict=True)):
            mine, its = ({name: torch.from_numpy(array) for name, array in one.items()} for one in pair)
            try:
                _compare(variant, mine, twin, its, problem)
            except Disagreement as error:
                return f"rank {g}: {error}"
    return None


def _compare(
    variant: Variant, mine: Mapping[str, Tensor], twin: Variant, its: Mapping[str, Tensor], problem: Problem
) -> None:
    losses, outputs = (f"{what}, {twin.name} and {variant.name}" for what in ("losses", "outputs"))
    if variant is twin:
        what = f"losses, ranks and one process, {variant.name}"
        agree(what, mine["losses"], _losses_of_one_process(variant, problem))
    elif variant.exact:
        agree(losses, mine["losses"], its["losses"], exact=same_bits(variant, twin))
    else:
        bound = HALF if variant.peer and not variant.amp else output_bound(variant, problem)
        agree_within(losses, mine["losses"], its["losses"], bound)
    if variant.peer is not None or variant is twin:
        return
    if variant.exact:
        agree(f"first {outputs}", mine["before"], its["before"], exact=same_bits(variant, twin))
    else:
        agree_within(f"first {outputs}", mine["before"], its["before"], output_bound(variant, problem))
    after = f"{outputs} after training"
    if not variant.exact:
        agree_within(after, mine["after"], its["after"], trained_bound(variant, problem))
    elif same_bits(variant, twin):
        # Only these: Adam makes a whole step of what rounding leaves of a small gradient.
        agree(after, mine["after"], its["after"], exact=True)


def same_bits(variant: Variant, twin: Variant) -> bool:
    """Whether ours makes the same sums in the same order: modules sum chunk by chunk, a tower's where it stands."""
    sums = variant.tower_module or variant.over_arch
    return variant.peer is None and (variant.options == twin.options or not sums)


@functools.cache
def _losses_of_one_process(variant: Variant, problem: Problem) -> Tensor:
    alone = Ours(variant, problem, None)
    return torch.stack([alone() for _ in range(TRAINED_STEPS)])


def output_bound(variant: Variant, problem: Problem) -> float:
    """How far outputs may be off, as a share of their norm.

    A row's error is at most `of_value` of it and `of_maximum` of its largest number in every column; each stage adds
    its own. A tower module may stretch the error of the stage before it more than the rows: twice as much is allowed.
    """
    return sum(_shares(variant, problem)) * (2 if variant.tower_module else 1)


def trained_bound(variant: Variant, problem: Problem) -> float:
    """How far outputs after training may be off, as a share of their norm: gradients come back by the formats, too.

    Without an over-arch errors stay as small as they are, independent ones, whose squares add up. Under an over-arch
    gradients are small, and Adam makes whole steps of what errors leave of them. They matter least where most rows of
    the tables have a gradient of one sample, few hosts add theirs, and many samples and columns make up a norm.
    """
    if not variant.over_arch:
        return math.hypot(*_shares(variant, problem))
    default = Problem()
    enough = all(getattr(problem, size) >= getattr(default, size) for size in ("tables", "dim", "samples"))
    ids_of_a_table = problem.world * problem.samples * problem.bag
    sparse = problem.world <= default.world and ids_of_a_table <= problem.rows
    return DEFAULT_SIZES if enough and sparse else OTHER_SIZES


def _shares(variant: Variant, problem: Problem) -> list[float]:
    """The most that each rounding adds to an error, as a share of the norm."""
    formats = [variant.payload] + ([variant.tower_payload] if variant.road == "sptt" else [])
    formats += [WireFormat.BF16] * (3 if variant.amp else 0)  # of both factors and of their product
    width = problem.tables // problem.hosts * problem.dim
    bounds = [payload.error_bound() for payload in formats]
    return [bound.of_value + bound.of_maximum * math.sqrt(width) for bound in bounds]


def agree_within(what: str, actual: Tensor, expected: Tensor, bound: float) -> None:
    """Raise :class:`Disagreement` unless the distance is at most this share of what was expected."""
    off = float((actual - expected).norm() / expected.norm())
    if not off <= bound:
        raise Disagreement(f"{what}: {off:.2g} of the norm apart, {bound:.2g} allowed")
