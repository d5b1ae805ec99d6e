"""Second stage of the exchange: the all-to-all between peers, over the slow links.

Letters: ``T`` towers, ``B`` samples per rank, ``C_t`` width that tower ``t`` sends after its module.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.ops._direct import is_eager
from dmt_kernels.ops.all_to_all import compose_stage, start_blocks, wait_blocks

compose_stage("peer")


def peer_all_to_all_start(compressed: Tensor, widths: Sequence[int], group: str) -> Tensor:
    """Start sending block ``t`` of the tower's output to the peer in tower ``t``.

    Parameters
    ----------
    compressed : Tensor
        ``[T, B, C_t]``, destination tower first; ``C_t`` is the own tower's width. All peers have the same ``B``, which
        is not checked, and a tensor that requires a gradient, or none of them has: the backward pass is collective,
        too.
    widths : sequence of int
        ``C_t`` of every tower, in tower order.
    group : str
        Name of the peer group.

    Returns
    -------
    Tensor
        ``[B * sum(widths)]``, for :func:`peer_all_to_all_wait`. Differentiable in ``compressed``.

    Raises
    ------
    RuntimeError
        If the shape does not fit the widths.
    """
    if is_eager():
        return start_blocks(compressed, widths, group)
    return torch.ops.dmt.peer_all_to_all_start(compressed, widths, group)


def peer_all_to_all_wait(started: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Blocks of :func:`peer_all_to_all_start`: one ``[B, C_t]`` view per source tower."""
    return wait_blocks(started, widths)


def peer_all_to_all(compressed: Tensor, widths: Sequence[int], group: str) -> list[Tensor]:
    """:func:`peer_all_to_all_start` and :func:`peer_all_to_all_wait` in one."""
    return peer_all_to_all_wait(peer_all_to_all_start(compressed, widths, group), widths)
