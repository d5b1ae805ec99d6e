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
    if variant.exact and same_bits(variant, twin):
        # Only these: Adam makes a whole step of what rounding leaves of a small gradient.
        agree(f"{outputs} after training", mine["after"], its["after"], exact=True)


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
    formats = [variant.payload] + ([variant.tower_payload] if variant.road == "sptt" else [])
    formats += [WireFormat.BF16] * (3 if variant.amp else 0)  # of both factors and of their product
    width = problem.tables // problem.hosts * problem.dim
    bounds = [payload.error_bound() for payload in formats]
    share = sum(bound.of_value + bound.of_maximum * math.sqrt(width) for bound in bounds)
    return share * (2 if variant.tower_module else 1)


def agree_within(what: str, actual: Tensor, expected: Tensor, bound: float) -> None:
    """Raise :class:`Disagreement` unless the distance is at most this share of what was expected."""
    off = float((actual - expected).norm() / expected.norm())
    if not off <= bound:
        raise Disagreement(f"{what}: {off:.2g} of the norm apart, {bound:.2g} allowed")
