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
        self._route = [self.features.index(lookup.feature) for lookup in lookups]
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
        return torch.cat(self._payload(outputs), dim=1)

    def finish(self, in_flight: Tensor) -> Tensor:  # noqa: D102
        return in_flight

    def _checked(self, sparse: Jagged, samples: int) -> tuple[Jagged, str]:
        """Ids of which none is wild, and what the ops do about missing ones."""
        ids, bounds = sparse.ids, "none"
        if ids.is_cuda and self.bounds == "error":  # the host does not wait for an answer: the ops record missing ids
            bounds, is_clean = "error", False
        elif ids.is_cuda and self.bounds == "none":
            is_clean = False
        else:
            missing = ops.check_ids(ids.cpu(), sparse.offsets.cpu(), self._rows)
            is_clean = not missing.count
            if missing.count:
                self._refuse_missing(sparse, missing)
        if samples and not is_clean:
            rows = on_device(tuple(self._rows), ids.device)
            rows = rows.repeat_interleave(sparse.offsets[::samples].diff(), output_size=ids.numel())
            ids = torch.where((ids >= 0) & (ids < rows), ids, -1)
        return Jagged(ids.to(self._id_dtype), sparse.offsets, sparse.weights), bounds
