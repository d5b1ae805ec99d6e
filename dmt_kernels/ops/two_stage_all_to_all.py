"""Both stages in one: what a flat all-to-all delivers, carried inside towers first and between peers second."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmt_kernels.ops._composition import compose
from dmt_kernels.ops._direct import is_eager
from dmt_kernels.ops.peer_all_to_all import peer_all_to_all
from dmt_kernels.ops.tower_all_to_all import tower_all_to_all


def two_stage_all_to_all(
    pooled: Tensor,
    member_widths: Sequence[int],
    tower_widths: Sequence[int],
    tower_group: str,
    peer_group: str,
    tower_module: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Carry pooled embeddings through the tower stage, a tower module, and the peer stage.

    Letters: ``R`` members, ``T`` towers, ``B`` samples per rank, ``D_m`` width of member ``m`` of the own tower,
    ``D_t = sum(D_m)``, ``C_t`` width that tower ``t`` sends.

    Parameters
    ----------
    pooled : Tensor
        ``[R, T, B, D_r]`` in peer order: destination member, then destination tower.
    member_widths : sequence of int
        ``D_m`` of every member of the own tower; their sum must not be 0.
    tower_widths : sequence of int
        ``C_t`` of every tower; without a module ``D_t``.
    tower_group, peer_group : str
        Names of the process groups.
    tower_module : callable, optional
        Maps ``[T * B, D_t]``, columns member by member, to ``[T * B, C_t]``, sample by sample. None passes through.

    Returns
    -------
    Tensor
        ``[B, sum(C_t)]``, columns tower by tower. Without a module these are the bits that one all-to-all
        over all ranks delivers. Differentiable in ``pooled`` and in the module's parameters.
    """
    if tower_module is None and not is_eager():
        return torch.ops.dmt.two_stage_all_to_all(pooled, member_widths, tower_widths, tower_group, peer_group)
    towers_and_samples = pooled.shape[1:3]
    tower = torch.cat(tower_all_to_all(pooled.flatten(1, 2), member_widths, tower_group), dim=1)
    compressed = tower if tower_module is None else tower_module(tower)
    return torch.cat(peer_all_to_all(compressed.unflatten(0, towers_and_samples), tower_widths, peer_group), dim=1)


def _pass_through(
    pooled: Tensor, member_widths: list[int], tower_widths: list[int], tower_group: str, peer_group: str
) -> Tensor:
    return two_stage_all_to_all(pooled, member_widths, tower_widths, tower_group, peer_group, lambda tower: tower)


compose("two_stage_all_to_all", _pass_through)
