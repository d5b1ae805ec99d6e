"""First stage of the exchange: the all-to-all inside a tower, over its fast links.

Letters: ``R`` members of the tower, ``N`` rows for each of them (``T * B``), ``D_m`` width of member ``m``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.ops._direct import is_eager
from dmt_kernels.ops.all_to_all import compose_stage, start_blocks, wait_blocks

compose_stage("tower")


def tower_all_to_all_start(pooled: Tensor, widths: Sequence[int], group: str) -> Tensor:
    """Start sending block ``m`` of the pooled embeddings to member ``m`` of the tower.

    Parameters
    ----------
    pooled : Tensor
        ``[R, N, D_r]``, destination member first; ``D_r`` is this member's width and may be 0. All members have the
        same ``N``, which is not checked, and a tensor that requires a gradient, or none of them has: the backward pass
        is collective, too.
    widths : sequence of int
        ``D_m`` of every member, in member order.
    group : str
        Name of the tower group.

    Returns
    -------
    Tensor
        ``[N * sum(widths)]``, for :func:`tower_all_to_all_wait`. Differentiable in ``pooled``.

    Raises
    ------
    RuntimeError
        If the shape does not fit the widths.
    """
    if is_eager():
        return start_blocks(pooled, widths, group)
    return torch.ops.dmt.tower_all_to_all_start(pooled, widths, group)


def tower_all_to_all_wait(started: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Blocks of :func:`tower_all_to_all_start`: one ``[N, D_m]`` view per source member."""
    return wait_blocks(started, widths)


def tower_all_to_all(pooled: Tensor, widths: Sequence[int], group: str) -> list[Tensor]:
    """:func:`tower_all_to_all_start` and :func:`tower_all_to_all_wait` in one."""
    return tower_all_to_all_wait(tower_all_to_all_start(pooled, widths, group), widths)
