"""The process groups of a run, one for each use, so that no two uses share a communicator."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from dmt_kernels.comm.agreement import check_agreement
from dmt_kernels.ops import stage_share_memory, traffic
from dmt_kernels.ops.groups import naming_failures
from dmt_kernels.ops.stage import engine_in_use
from dmt_kernels.spec import ExchangeError, InputError, Topology

DEFAULT_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Mesh:
    """This rank's place and its groups.

    ``ids``, ``flat``, ``rows`` and ``dense`` hold every rank; ``tower`` and ``tower_dense`` the members of the own
    tower; ``peer`` the ranks with the own member index. Every group is a separate communicator.
    """

    topology: Topology
    rank: int
    device: torch.device
    ids: dist.ProcessGroup
    flat: dist.ProcessGroup
    tower: dist.ProcessGroup
    peer: dist.ProcessGroup
    rows: dist.ProcessGroup
    dense: dist.ProcessGroup
    tower_dense: dist.ProcessGroup

    @property
    def tower_index(self) -> int:
        """``t`` of this rank."""
        return self.topology.tower_of(self.rank)

    @property
    def member_index(self) -> int:
        """``r`` of this rank."""
        return self.topology.member_of(self.rank)


def build_mesh(
    towers: int | None = None,
    members: int | None = None,
    *,
    device: torch.device | str = "cpu",
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Mesh:
    """Make and warm the groups of this rank. Collective: every rank of the default group calls it alike.

    On CUDA it sets ``NCCL_LAUNCH_ORDER_IMPLICIT=1`` in the environment, unless that is set: this rank's groups share a
    GPU, and so none overtakes another. NCCL reads it once, at the process's first collective; whoever has one before
    this call sets it himself. NCCL then fails where several threads of a process issue collectives at one time.

    Parameters
    ----------
    towers, members : int, optional
        ``T`` and ``R``. One given determines the other; with none, ``R`` is ``LOCAL_WORLD_SIZE``, a tower per host.
    device : device or str
        Where the ranks' tensors live.
    timeout_s : float
        Seconds after which a collective of these groups fails.

    Returns
    -------
    Mesh
        The place of this rank, ``g = t * R + r``, and its groups.

    Raises
    ------
    InputError
        If ``torch.distributed`` is not initialised, ``T * R`` is not the world size, ranks were told other towers, or
        exchange on other engines.
    ExchangeError
        If a rank does not come within the timeout.
    """
    if not dist.is_initialized():
        raise InputError("torch.distributed is not initialised: call init_process_group first")
    topology = _topology(dist.get_world_size(), towers, members)
    rank, device = dist.get_rank(), torch.device(device)
    if device.type == "cuda":
        _keep_launch_order()
    everyone = [list(range(topology.world))]
    by_tower = [topology.tower_ranks(t) for t in range(topology.towers)]
    by_member = [topology.peer_ranks(r) for r in range(topology.members)]
    # new_group is collective over the world: all ranks make all groups, in this order.
    ids = _new_group("ids", everyone, topology, rank, device, timeout_s)
    told = [
        ("towers", topology.towers),
        ("members", topology.members),
        # The compiled one and the composition cut what they send into messages of their own.
        ("communication engine", engine_in_use.partition(":")[0]),
    ]
    check_agreement(told, ids, device)
    groups = {
        stage: _new_group(stage, partition, topology, rank, device, timeout_s)
        for stage, partition in (
            ("flat", everyone),
            ("tower", by_tower),
            ("peer", by_member),
            ("rows", by_tower),
            ("dense", everyone),
            ("tower_dense", by_tower),
        )
    }
    mesh = Mesh(topology=topology, rank=rank, device=device, ids=ids, **groups)
    if device.type == "cpu":
        for group in (mesh.ids, mesh.flat, mesh.tower, mesh.peer, mesh.rows):  # those of stages
            stage_share_memory(group.group_name)
    return mesh


def _topology(world: int, towers: int | None, members: int | None) -> Topology:
    if towers is None and members is None:
        members = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    # What is not given is what the world leaves, at least 1: the check below then names the mismatch.
    if members is None:
        assert towers is not None
        members = max(world // max(towers, 1), 1)
    elif towers is None:
        towers = max(world // max(members, 1), 1)
    assert towers is not None
    topology = Topology(towers, members)
    if topology.world != world:
        raise InputError(f"{towers} towers of {members} members need {topology.world} ranks, the world has {world}")
    return topology


def _keep_launch_order() -> None:
    """Have NCCL run what this process gives several communicators in the order in which it does.

    Each has a stream of its own. Without an order between them a GPU may be full of one's kernels, which wait for a
    rank whose GPU is full of another's. All ranks give the same order, since that depends on the plan alone.
    """
    os.environ.setdefault("NCCL_LAUNCH_ORDER_IMPLICIT", "1")


def _new_group(
    stage: str,
    partition: Sequence[list[int]],
    topology: Topology,
    rank: int,
    device: torch.device,
    timeout_s: float,
) -> dist.ProcessGroup:
    mine, ranks_of_mine = None, []
    for ranks in partition:
        try:
            # What NCCL's watchdog calls the group when it has waited for too long.
            desc = f"dmt {stage} (ranks {_span(ranks)})"
            group = dist.new_group(ranks, timeout=timedelta(seconds=timeout_s), group_desc=desc)
        except RuntimeError as error:
            who = f"rank {rank} made the group of the {stage} stage among ranks {_span(ranks)}"
            raise ExchangeError(f"{who}, and the backend said: {' '.join(str(error).split())}") from error
        if rank in ranks:
            mine, ranks_of_mine = group, ranks
    assert mine is not None
    traffic.register_group(mine.group_name, stage, [_link(topology, rank, other) for other in ranks_of_mine])
    with naming_failures(mine.group_name, "connected"):
        dist.all_reduce(torch.zeros(1, device=device), group=mine)  # now, in order, not under the first step
    return mine


def _span(ranks: list[int]) -> str:
    """Ranks in words; a world of many in few."""
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]} to {ranks[-1]}"
    return ", ".join(map(str, ranks))


def _link(topology: Topology, rank: int, other: int) -> str:
    if rank == other:
        return "self"
    return "tower" if topology.tower_of(rank) == topology.tower_of(other) else "peer"
