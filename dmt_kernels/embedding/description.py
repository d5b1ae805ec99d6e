"""What all ranks must have built an exchange of, in words that they can compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dmt_kernels.spec import Payloads, Plan
from dmt_kernels.towers import TowerModule


def describe(
    kind: str, plan: Plan, tower_modules: Mapping[int, TowerModule] | None, payloads: Payloads, **options: Any
) -> Iterator[tuple[str, object]]:
    """Yield what, and its value, one by one: a difference then shows as what it is."""
    yield "exchange", kind
    yield "towers", plan.topology.towers
    yield "members", plan.topology.members
    yield from options.items()
    yield "payload", payloads.peer.value
    yield "payload of gradients", payloads.peer_backward.value
    yield "tower payload", payloads.tower.value
    yield "tower payload of gradients", payloads.tower_backward.value
    yield "stochastic rounding", payloads.stochastic
    for i, table in enumerate(plan.tables):
        features = ", ".join(table.features)
        yield f"table {i}", f"{table.name!r} with {table.rows} rows of {table.dim}, {table.pooling} of {features}"
    for t, tower in enumerate(plan.partition.towers):
        for i, feature in enumerate(tower):
            yield f"feature {i} of tower {t}", repr(feature)
    for i, shard in enumerate(plan.shards):
        replica = ", replicated" if shard.replicated else ""
        place = f"on member {shard.member} of tower {shard.tower}{replica}"
        rows, columns = f"rows {shard.row_start}-{shard.row_stop}", f"columns {shard.col_start}-{shard.col_stop}"
        yield f"shard {i}", f"{rows} and {columns} of {shard.table.name!r} {place}"
    for t, module in sorted((tower_modules or {}).items()):
        yield f"tower module {t}", f"{type(module).__name__} with {module.out_width} columns"
