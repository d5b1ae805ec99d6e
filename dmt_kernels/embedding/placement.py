"""Where a linear tower module stands: whole at the members, or in slices at the owners of tables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from dmt_kernels.comm import Mesh
from dmt_kernels.embedding.column_layout import TowerLayout
from dmt_kernels.ops.groups import naming_failures
from dmt_kernels.spec import Plan
from dmt_kernels.towers import TowerModule, TowerSlice

PLACEMENTS = ("member", "owner", "auto")
ROUNDS = 5  # of a trial, after one to warm up


def obstacle_to_owners(plan: Plan, tower_modules: Mapping[int, TowerModule] | None) -> str | None:
    """Say why tower modules cannot stand in slices at the owners of tables; None if they can. All ranks say the same.

    A column of a tower has to be the business of one member, or the gradient of its weights would be a sum over several
    again: of partial sums of rows, or of the samples that each replica looks up for itself.
    """
    if tower_modules is None:
        return "there are no tower modules"
    for t, module in sorted(tower_modules.items()):
        if module.column_axes() is None:
            return f"the {type(module).__name__} of tower {t} is not linear or cannot be cut by its input columns"
    for shard in plan.shards:
        if shard.splits_rows or shard.replicated:
            how = "replicated" if shard.replicated else "split by rows"
            return f"table {shard.table.name!r} is {how}, so that its columns have several owners"
    return None


def slice_of(module: TowerModule, layout: TowerLayout, member: int) -> TowerSlice:
    """What a member owns of its tower's module; the first member with tables has the bias."""
    widths = layout.sent_widths
    columns = layout.columns_of_blocks[sum(widths[:member]) : sum(widths[: member + 1])]
    return TowerSlice(module, columns, has_bias=member == next(m for m, width in enumerate(widths) if width))


def quickest(trials: Mapping[str, Callable[[], None]], mesh: Mesh) -> str:
    """Run every trial a few times in turns and return the name of the quickest. Collective over all ranks.

    What a trial takes is a rank's median, of the rank where that is longest: the same number on every rank, so all
    choose alike. A tie goes to the first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in trials}
    for _ in range(1 + ROUNDS):
        for name, trial in trials.items():
            _line_up(mesh)
            began = time.perf_counter()
            trial()
            if mesh.device.type == "cuda":
                torch.cuda.synchronize(mesh.device)
            seconds[name].append(time.perf_counter() - began)
    medians = [statistics.median(times[1:]) for times in seconds.values()]
    longest = torch.tensor(medians, dtype=torch.float64, device=mesh.device)
    with naming_failures(mesh.dense.group_name, "compared placements"):
        dist.all_reduce(longest, dist.ReduceOp.MAX, group=mesh.dense)
    return list(trials)[int(longest.argmin())]


def _line_up(mesh: Mesh) -> None:
    with naming_failures(mesh.dense.group_name, "waited to try a placement"):
        dist.all_reduce(torch.zeros(1, device=mesh.device), group=mesh.dense)
