"""The two roads between ranks: flat, and two stages with a tower module between them (SPTT).

Both exchange ids, hold shards and put columns in order alike; they differ in the order in which pooled blocks are
written and in the collectives that carry them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_kernels.comm import Mesh
from dmt_kernels.embedding.exchange import EmbeddingExchange
from dmt_kernels.embedding.row_means import TowerRowMeans, splits_columns
from dmt_kernels.embedding.table_shards import TableShards
from dmt_kernels.ops import IdExchange, IdRoutes, ReceivedIds, peer_all_to_all, tower_all_to_all
from dmt_kernels.ops.all_to_all import start_blocks, wait_blocks
from dmt_kernels.spec import InputError, Jagged, Plan
from dmt_kernels.towers import TowerModule


class WiredExchange(EmbeddingExchange):
    """What the two roads share: this member's shards, and the exchange of ids.

    Parameters
    ----------
    mesh : Mesh
        This rank's place and groups; the rest as in :class:`EmbeddingExchange` and :class:`TableShards`.

    Raises
    ------
    InputError
        If the mesh and the plan disagree on towers and members.
    """

    def __init__(
        self,
        plan: Plan,
        tower_modules: Mapping[int, TowerModule] | None,
        *,
        mesh: Mesh,
        bounds: str = "error",
        **shards_options: Any,
    ) -> None:
        super().__init__(plan, tower_modules, bounds)
        if mesh.topology != plan.topology:
            raise InputError(f"the mesh is {mesh.topology}, the plan is for {plan.topology}")
        self.mesh = mesh
        t, r = mesh.tower_index, mesh.member_index
        self.own = self.layouts[t].members[r]
        row_means = TowerRowMeans(plan, t, r, mesh.rows) if splits_columns(plan, t) else None
        self.shards = TableShards(self.own.lookups, row_means=row_means, **shards_options)
        routes = tuple(
            tuple(self.features.index(lookup.feature) for lookup in member.lookups)
            for layout in self.layouts
            for member in layout.members
        )
        self._routes = IdRoutes(tuple(self._rows), routes, mesh.rank, mesh.ids.group_name, chunks=1)
        self._ahead: tuple[Jagged, IdExchange] | None = None  # a batch whose ids are on their way

    def prefetch(self, sparse: Jagged) -> None:  # noqa: D102  (the base class has the words)
        self._ahead = sparse, self._send_ids(sparse)

    def advance(self) -> None:  # noqa: D102
        if self._ahead is not None:
            self._ahead[1].advance()

    def _send_ids(self, sparse: Jagged) -> IdExchange:
        self._samples(sparse)
        return IdExchange(sparse, self._routes, partial(self._refuse_missing, sparse))

    def _receive_ids(self, sparse: Jagged) -> ReceivedIds:
        """What was prefetched, or a whole exchange now."""
        if self._ahead is None or self._ahead[0] is not sparse:
            return self._send_ids(sparse).wait()
        (_, on_their_way), self._ahead = self._ahead, None
        return on_their_way.wait()

    def _pooled(self, sparse: Jagged, samples: int, block_order: list[int]) -> tuple[Tensor, Tensor]:
        """``[W * B, D_r]`` to send and ``[W * B, kept_width]`` of replicas, blocks in ``block_order``."""
        pooled = self.shards(self._receive_ids(sparse).bags, samples, block_order)
        return pooled[:, : self.own.sent_width], pooled[:, self.own.sent_width :]

    def _keep(self, kept: Tensor, rows: int) -> Tensor:
        """Of ``[R * rows, kept_width]`` in peer order, the own ``[rows, kept_width]``."""
        if not kept.shape[1]:
            return kept[:rows]
        blocks = kept.view(self.plan.topology.members, rows, kept.shape[1])
        return _KeepOwn.apply(blocks, self.mesh.member_index, self.mesh.tower)


class SpttExchange(WiredExchange):
    """Semantic-preserving tower transform: tower stage, tower module, peer stage.

    Parameters are those of :class:`WiredExchange`.
    """

    def __init__(self, plan: Plan, tower_modules: Mapping[int, TowerModule] | None, **options: Any) -> None:
        super().__init__(plan, tower_modules, **options)
        if tower_modules is not None:
            t = self.mesh.tower_index
            self.tower_modules[str(t)] = tower_modules[t]

    def _carry(self, sparse: Jagged, samples: int) -> Tensor:
        towers, members = self.plan.topology.towers, self.plan.topology.members
        layout = self.layouts[self.mesh.tower_index]
        sent, kept = self._pooled(sparse, samples, self.plan.topology.peer_order)
        own = self._keep(kept, towers * samples)
        blocks = [sent[: towers * samples]] * members  # [T*B, 0]: nothing to send when all tables are replicated
        if any(layout.sent_widths):
            pooled = sent.reshape(members, towers * samples, self.own.sent_width)
            blocks = tower_all_to_all(pooled, layout.sent_widths, self.mesh.tower.group_name)
        tower = layout.assemble(blocks, own)  # [T*B, D_t]
        if self.tower_modules:
            tower = self.tower_modules[str(self.mesh.tower_index)](tower)
        compressed = tower.view(towers, samples, -1)
        return torch.cat(peer_all_to_all(compressed, self.out_widths, self.mesh.peer.group_name), dim=1)


class FlatExchange(WiredExchange):
    """The baseline and oracle: one all-to-all over all ranks.

    Parameters are those of :class:`WiredExchange`; there is no place for tower modules.

    Raises
    ------
    InputError
        If tower modules are given.
    """

    def __init__(self, plan: Plan, tower_modules: Mapping[int, TowerModule] | None, **options: Any) -> None:
        if tower_modules is not None:
            raise InputError("a flat exchange has no towers to put tower modules in; use exchange 'sptt'")
        super().__init__(plan, None, **options)

    def _carry(self, sparse: Jagged, samples: int) -> Tensor:
        topology = self.plan.topology
        kept_widths = [layout.kept_width for layout in self.layouts]
        sent, kept = self._pooled(sparse, samples, list(range(topology.world)))
        sent_widths = [width for layout in self.layouts for width in layout.sent_widths]
        kept_blocks: list[Tensor | None] = [None] * topology.towers
        if any(kept_widths):
            # Source order to peer order: [T, R, B, .] to [R, T, B, .].
            by_member = kept.reshape(topology.towers, topology.members, samples, kept.shape[1]).transpose(0, 1)
            own = self._keep(by_member.flatten(0, 2), topology.towers * samples)
            by_tower = own.view(topology.towers, samples, kept.shape[1])
            kept_blocks = list(peer_all_to_all(by_tower, kept_widths, self.mesh.peer.group_name))
        blocks = [sent[:samples]] * topology.world
        if any(sent_widths):
            pooled = sent.reshape(topology.world, samples, self.own.sent_width)
            blocks = wait_blocks(start_blocks(pooled, sent_widths, self.mesh.flat.group_name), sent_widths)
        towers = []
        for t, layout in enumerate(self.layouts):
            mine = blocks[topology.rank_of(t, 0) : topology.rank_of(t + 1, 0)]
            towers.append(layout.assemble(mine, kept_blocks[t]))
        return torch.cat(towers, dim=1)


class _KeepOwn(torch.autograd.Function):
    """Take the own member's block; backward gathers the tower's gradients, so that all replicas see all of them."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, member: int, group: dist.ProcessGroup) -> Tensor:
        ctx.members, ctx.group = blocks.shape[0], group
        return blocks[member].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # A gather is an all-to-all in which everyone is sent the same.
        grad = grad.contiguous()
        copies = grad.expand(ctx.members, *grad.shape)
        widths = [grad.shape[1]] * ctx.members
        blocks = wait_blocks(start_blocks(copies, widths, ctx.group.group_name), widths)
        return torch.stack(blocks), None, None
