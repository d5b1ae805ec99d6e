"""All towers in one process: the exchange without the wires."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmt_kernels import ops
from dmt_kernels.embedding.exchange import EmbeddingExchange
from dmt_kernels.embedding.local_payload import LocalPayload
from dmt_kernels.embedding.row_means import complete_row_means, splits_columns
from dmt_kernels.embedding.table_shards import TableShards
from dmt_kernels.ops.bag_arguments import on_device
from dmt_kernels.ops.id_exchange import id_dtype, select_features
from dmt_kernels.spec import Jagged, Payloads, Plan
from dmt_kernels.towers import TowerModule


class LocalExchange(EmbeddingExchange):
    """Holds every shard of the plan (one copy of a replicated table) and every tower module.

    Parameters are those of :class:`EmbeddingExchange`; rows are rounded as the peer stage's `payloads` would round
    them; the rest goes to :class:`TableShards`.
    """

    def __init__(
        self,
        plan: Plan,
        tower_modules: Mapping[int, TowerModule] | None,
        *,
        bounds: str = "error",
        payloads: Payloads | None = None,
        seed: int,
        **shards_options: Any,
    ) -> None:
        super().__init__(plan, tower_modules, bounds)
        for t, module in (tower_modules or {}).items():
            self.tower_modules[str(t)] = module
        # Member by member, as the wires would bring them; of replicas, the first member's.
        self._blocks = [
            [member.sent for member in layout.members] + [layout.members[0].kept] for layout in self.layouts
        ]
        lookups = [lookup for blocks in self._blocks for block in blocks for lookup in block]
        self._id_dtype = id_dtype(self._rows)
        self._route = [self.positions[lookup.feature] for lookup in lookups]
        split = any(splits_columns(plan, t) for t in range(plan.topology.towers))
        self.shards = TableShards(lookups, row_means=self._row_means if split else None, seed=seed, **shards_options)
        self._payload = LocalPayload(plan.topology, payloads or Payloads(), seed)

    def _row_means(self, squares: list[Tensor]) -> Tensor:
        shards = self.shards.shards
        return complete_row_means(self.plan, shards, dict(zip(shards, squares, strict=True)))

    def start(self, sparse: Jagged) -> Tensor:  # noqa: D102  (the base class has the words)
        checked, bounds = self._checked(sparse, samples := self._samples(sparse))
        selected = select_features(checked, len(self.features), self._route)
        pooled = self.shards(selected, samples, [0], bounds=bounds)
        widths = [sum(lookup.shard.dim for lookup in block) for blocks in self._blocks for block in blocks]
        pieces = iter(pooled.split(widths, dim=1))
        outputs = []
        for t, layout in enumerate(self.layouts):
            tower = layout.assemble([next(pieces) for _ in (*layout.members, "kept")])
            outputs.append(self.tower_modules[str(t)](tower).to(tower.dtype) if self.tower_modules else tower)
        return torch.cat(self._payload(outputs, self._count()), dim=1)

    def finish(self, in_flight: Tensor) -> Tensor:  # noqa: D102
        return in_flight

    def _checked(self, sparse: Jagged, samples: int) -> tuple[Jagged, str]:
        """Ids of which none is taken for another, and what the ops do about missing ones."""
        ids, bounds = sparse.ids, "none"
        is_clean = False
        if ids.is_cuda and self.bounds == "error":  # the host does not wait for an answer: the ops record missing ids
            bounds = "error"
        elif not ids.is_cuda or self.bounds == "warn":
            missing = ops.check_ids(ids, sparse.offsets, self._rows)
            is_clean = not missing.count
            if missing.count:
                self._refuse_missing(sparse, missing)
        ids = ids.to(self._id_dtype) if is_clean or not samples else self._narrowed(ids, sparse.offsets, samples)
        return Jagged(ids, sparse.offsets, sparse.weights), bounds

    def _narrowed(self, ids: Tensor, offsets: Tensor, samples: int) -> Tensor:
        """Ids in the type that is looked up; -1 for those that the type, or a shard, would take for others.

        The rest stay as they are, for whoever reports them. Offsets may be wild, as on a device nobody looks.
        """
        narrow = ids.to(self._id_dtype)
        is_kept = narrow == ids
        if self.shards.splits_rows:  # what is beyond the table is another shard's to each of its shards
            ends = offsets[samples:-1:samples].contiguous()  # of features but the last
            features = torch.searchsorted(ends, torch.arange(ids.numel(), device=ids.device), right=True)
            is_kept &= ids < on_device(tuple(self._rows), ids.device)[features]
        return torch.where(is_kept, narrow, -1)
