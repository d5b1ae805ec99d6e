"""The two roads between ranks: flat, and two stages with a tower module between them (SPTT).

Both exchange ids, hold shards and put columns in order alike; they differ in the order in which pooled blocks are
written and in the stages that carry them (:mod:`~dmt_kernels.embedding.flight`).
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from dmt_kernels.comm import Mesh
from dmt_kernels.embedding.buffers import BufferPool
from dmt_kernels.embedding.chunk_choice import ChunkChoice, Chunks
from dmt_kernels.embedding.exchange import EmbeddingExchange
from dmt_kernels.embedding.flat_flight import FlatFlight
from dmt_kernels.embedding.flight import Cargo, Flight, InFlight, arrive, depart
from dmt_kernels.embedding.row_means import TowerRowMeans, splits_columns
from dmt_kernels.embedding.sptt_flight import SpttFlight
from dmt_kernels.embedding.stage import Stage
from dmt_kernels.embedding.table_shards import TableShards
from dmt_kernels.embedding.tower_step import tower_step
from dmt_kernels.ops import IdExchange, IdRoutes, ReceivedIds
from dmt_kernels.spec import InputError, Jagged, Payloads, Plan, derive_seed
from dmt_kernels.towers import TowerModule


class WiredExchange(EmbeddingExchange):
    """What the two roads share: this member's shards, the exchange of ids, the chunks.

    Parameters
    ----------
    mesh : Mesh
        This rank's place and groups; the rest as in :class:`EmbeddingExchange` and :class:`TableShards`.
    chunks : int or "auto"
        Pieces that a batch is cut into, so that their stages overlap; where the samples of a rank are no multiple of
        it, the largest number below that divides them. "auto" tries several in the first steps of training and takes
        the fastest.
    payloads : Payloads
        What rows travel as.

    Raises
    ------
    InputError
        If the mesh and the plan disagree on towers and members, or there are too few or too many chunks.
    """

    def __init__(
        self,
        plan: Plan,
        tower_modules: Mapping[int, TowerModule] | None,
        *,
        mesh: Mesh,
        bounds: str = "error",
        chunks: Chunks = 1,
        payloads: Payloads | None = None,
        seed: int,
        **shards_options: Any,
    ) -> None:
        super().__init__(plan, tower_modules, bounds)
        if mesh.topology != plan.topology:
            raise InputError(f"the mesh is {mesh.topology}, the plan is for {plan.topology}")
        self.mesh, self._chunk_choice = mesh, ChunkChoice(chunks, mesh)
        self.place = mesh.tower_index, mesh.member_index
        t, r = self.place
        row_means = TowerRowMeans(plan, t, r, mesh.rows) if splits_columns(plan, t) else None
        self.shards = TableShards(self.layouts[t].members[r].lookups, row_means=row_means, seed=seed, **shards_options)
        payloads = payloads or Payloads()
        rounding = derive_seed(seed, "payloads", mesh.rank) if payloads.stochastic else None
        groups = {"flat": mesh.flat, "peer": mesh.peer, "tower": mesh.tower}
        formats = {
            "flat": (payloads.peer, payloads.peer_backward),
            "peer": (payloads.peer, payloads.peer_backward),
            "tower": (payloads.tower, payloads.tower_backward),
        }
        self.stages = {name: Stage(group.group_name, *formats[name], rounding) for name, group in groups.items()}
        looked_up = tuple(
            tuple(self.features.index(lookup.feature) for lookup in member.lookups)
            for layout in self.layouts
            for member in layout.members
        )
        self._routes = IdRoutes(tuple(self._rows), looked_up, mesh.rank, mesh.ids.group_name)
        self._ahead: tuple[Jagged, IdExchange] | None = None  # a batch whose ids are on their way
        self._flights = itertools.count()
        self._memory = BufferPool()

    def prefetch(self, sparse: Jagged) -> None:  # noqa: D102  (the base class has the words)
        if self._ahead is not None:  # not used after all; what is on its way has to arrive
            self._ahead[1].wait()
        self._ahead = sparse, self._send_ids(sparse)

    def advance(self) -> None:  # noqa: D102
        if self._ahead is not None:
            self._ahead[1].advance()

    @property
    def chunks(self) -> int | None:
        """Pieces that a batch is cut into; None as long as several numbers are tried.

        Assigned to on all ranks at once, it holds from the next batch on; "auto" begins another trial.
        """
        return self._chunk_choice.chosen

    @chunks.setter
    def chunks(self, chunks: Chunks) -> None:
        self._chunk_choice = ChunkChoice(chunks, self.mesh)

    def start(self, sparse: Jagged) -> InFlight:  # noqa: D102
        received = self._receive_ids(sparse)
        self._chunk_choice.depart(len(received.chunks), trains=torch.is_grad_enabled())
        cargo = Cargo(self.shards, received, self._samples(sparse), self.block_order, self._memory)
        return depart(self._flight(cargo))

    def finish(self, in_flight: InFlight) -> Tensor:  # noqa: D102
        return arrive(in_flight)

    @property
    @abstractmethod
    def block_order(self) -> list[int]:
        """Block of a chunk's pooled rows that goes to each rank."""

    @abstractmethod
    def _flight(self, cargo: Cargo) -> Flight:
        """The road of one batch."""

    def _send_ids(self, sparse: Jagged) -> IdExchange:
        self._samples(sparse)  # a whole number of them
        chunks = self._chunk_choice.next
        return IdExchange(sparse, self._routes, partial(self._refuse_missing, sparse), chunks=chunks)

    def _receive_ids(self, sparse: Jagged) -> ReceivedIds:
        """What was prefetched, or a whole exchange now."""
        if self._ahead is None or self._ahead[0] is not sparse:
            return self._send_ids(sparse).wait()
        (_, on_their_way), self._ahead = self._ahead, None
        return on_their_way.wait()


class SpttExchange(WiredExchange):
    """Semantic-preserving tower transform: tower stage, tower module, peer stage.

    Parameters are those of :class:`WiredExchange`.
    """

    @property
    def block_order(self) -> list[int]:  # noqa: D102
        return self.plan.topology.peer_order

    def __init__(self, plan: Plan, tower_modules: Mapping[int, TowerModule] | None, **options: Any) -> None:
        super().__init__(plan, tower_modules, **options)
        if tower_modules is not None:
            t = self.place[0]
            self.tower_modules[str(t)] = tower_modules[t]

    def _flight(self, cargo: Cargo) -> Flight:
        layout = self.layouts[self.place[0]]
        module = cast(TowerModule | None, next(iter(self.tower_modules.values()), None))
        return SpttFlight(
            cargo,
            layout=layout,
            place=self.place,
            tower=self.stages["tower"],
            peer=self.stages["peer"],
            make_tower_step=partial(tower_step, module, layout),
            out_widths=self.out_widths,
            number=next(self._flights),
        )


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

    @property
    def block_order(self) -> list[int]:  # noqa: D102
        return list(range(self.plan.topology.world))

    def _flight(self, cargo: Cargo) -> Flight:
        return FlatFlight(
            cargo,
            layouts=self.layouts,
            place=self.place,
            **self.stages,
            number=next(self._flights),
        )
