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
    """

    def __init__(self, plan: Plan, tower: int, member: int, group: dist.ProcessGroup) -> None:
        self._plan, self._tower, self._member, self._group = plan, tower, member, group.group_name
        self._shards = _lookup_order(plan, tower, member)

    def __call__(self, squares: list[Tensor]) -> Tensor:
        """Exchange and complete; takes and returns the local shards' values in lookup order."""
        mine = dict(zip(self._shards, squares, strict=True))
        # Towards every member: the columns' sums of the tables that it has other columns of, in the plan's order.
        shared = [self._shared_with(member) for member in range(self._plan.topology.members)]
        splits = [sum(mine[shard].numel() for shard, _ in pairs) for pairs in shared]
        sent = [mine[shard] for pairs in shared for shard, _ in pairs]
        arrived = all_to_all(
            torch.cat(sent) if sent else torch.zeros(0, dtype=torch.float64), splits, splits, self._group
        )
        theirs = dict(
            zip(
                [other for pairs in shared for _, other in pairs],
                arrived.split([mine[shard].numel() for pairs in shared for shard, _ in pairs]),
                strict=True,
            )
        )
        return complete_row_means(self._plan, self._shards, mine | theirs)

    def _shared_with(self, member: int) -> list[tuple[Shard, Shard]]:
        if member == self._member:
            return []
        pairs = [
            (mine, other)
            for mine in self._shards
            for other in _lookup_order(self._plan, self._tower, member)
            if mine.splits_cols and mine.table == other.table
        ]
        return sorted(pairs, key=lambda pair: pair[0].table.name)  # one order on both ends


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
