"""Row statistics of column splits: row-wise Adagrad's mean square covers the whole row, wherever its columns lie."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_kernels.ops.all_to_all import all_to_all
from dmt_kernels.spec import Plan, Shard


def splits_columns(plan: Plan, tower: int) -> bool:
    """Whether any table of the tower is split by columns."""
    return any(shard.splits_cols for shard in plan.shards if shard.tower == tower)


class TowerRowMeans:
    """Sums of squares meet inside the tower; all shards of a table touch the same rows, so no sizes travel.

    Parameters
    ----------
    plan : Plan
        The layout.
    tower, member : int
        Whose view this is.
    group : ProcessGroup
        The tower's group for row statistics.
    device : device
        What it moves.
    """

    def __init__(self, plan: Plan, tower: int, member: int, group: dist.ProcessGroup, device: torch.device) -> None:
        self._plan, self._group, self._device = plan, group.group_name, device
        self._shards = _lookup_order(plan, tower, member)
        # For every member: own shards and its shards that are other columns of one table, in one order on both ends.
        self._shared = [
            self._pairs(_lookup_order(plan, tower, other) if other != member else [])
            for other in range(plan.topology.members)
        ]

    def __call__(self, squares: list[Tensor]) -> Tensor:
        """Exchange and complete; takes and returns the local shards' values in lookup order."""
        own = dict(zip(self._shards, squares, strict=True))
        pairs = [pair for shared in self._shared for pair in shared]
        splits = [sum(own[shard].numel() for shard, _ in shared) for shared in self._shared]
        nothing = torch.zeros(0, dtype=torch.float64, device=self._device)
        sent = torch.cat([nothing, *(own[shard] for shard, _ in pairs)])
        arrived = all_to_all(sent, splits, splits, self._group).split([own[shard].numel() for shard, _ in pairs])
        others = {other: values for (_, other), values in zip(pairs, arrived, strict=True)}
        return complete_row_means(self._plan, self._shards, own | others)

    def _pairs(self, others: Sequence[Shard]) -> list[tuple[Shard, Shard]]:
        split = [shard for shard in self._shards if shard.splits_cols]
        pairs = [(own, other) for own in split for other in others if own.table == other.table]
        return sorted(pairs, key=lambda pair: pair[0].table.name)


def complete_row_means(plan: Plan, shards: Sequence[Shard], squares: dict[Shard, Tensor]) -> Tensor:
    """Mean squares of whole rows for ``shards``, one after the other, from sums over each shard's columns."""
    means = []
    for shard in shards:
        parts = plan.table_shards(shard.table) if shard.splits_cols else (shard,)
        total = squares[parts[0]]
        for part in parts[1:]:
            total = total + squares[part]
        means.append(total / shard.table.dim)
    return torch.cat(means) if means else torch.zeros(0, dtype=torch.float64)


def _lookup_order(plan: Plan, tower: int, member: int) -> list[Shard]:
    shards = plan.member_shards(tower, member)
    return [s for s in shards if not s.replicated] + [s for s in shards if s.replicated]
