"""Dot products of pairs of features, forward and backward, against what one writes in PyTorch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.agreement import agree
from bench.ceilings import Ceilings
from bench.memory import random_values
from bench.registry import DEFAULT, QUICK, Registry, Run, Setting, Work
from dmt_kernels import ops
from dmt_kernels.ops.reference import dot_interaction as oracle

SAMPLES = 1024
SHAPES = {"17x16": (17, 16), "17x64": (17, 64), "27x128": (27, 128)}  # features, dim


def register(registry: Registry) -> None:
    for shape in SHAPES:
        effort = QUICK if shape == "17x16" else DEFAULT
        registry.add(f"dot_interaction/{shape}", partial(build, shape, False), effort)
        registry.add(f"dot_interaction/{shape}/backward", partial(build, shape, True), effort)


def build(shape: str, backward: bool, setting: Setting) -> Work:
    features, dim = SHAPES[shape]
    values = random_values(SAMPLES * features * dim, torch.float32, seed=3).view(SAMPLES, features * dim)
    blocks = [values[:, :dim].clone(), values[:, dim:].clone()]
    pairs = features * (features - 1) // 2
    if backward:
        grad = random_values(SAMPLES * (dim + pairs), torch.float32, seed=4).view(SAMPLES, dim + pairs)
        ours: Run = partial(torch.ops.dmt.dot_interaction_backward, grad, blocks, dim, True)
        torch_run: Run = partial(oracle.dot_interaction_backward, grad, blocks, dim, True)
    else:
        ours = partial(ops.dot_interaction, blocks, dim, with_first=True)
        torch_run = partial(oracle.dot_interaction, blocks, dim, True)

    def check() -> None:
        for actual, expected in zip(as_list(ours()), as_list(torch_run()), strict=True):
            agree("ours and the oracle", actual, expected)

    moved = 4.0 * (values.numel() * (1 + backward) + SAMPLES * (dim + pairs))
    return Work(
        ours,
        {"torch": torch_run} if "torch" in setting.peers else {},
        check,
        partial(copy_floor, moved),
        work_bytes=moved,
        work_flops=2.0 * SAMPLES * pairs * dim * (1 + backward),
    )


def as_list(result: Tensor | list[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else result


def copy_floor(moved: float, ceilings: Ceilings) -> dict[str, float]:
    return {"copy": ceilings.copy(int(moved / 2))}
