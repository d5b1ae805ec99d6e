"""The two roads between ranks: flat, and two stages with a tower module between them (SPTT).

Both exchange ids, hold shards and put columns in order alike; they differ in the order in which pooled blocks are
written and in the stages that carry them (:mod:`~dmt_kernels.embedding.flight`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from dmt_kernels.comm import Mesh, all_reduce_flat
from dmt_kernels.embedding.buffers import BufferPool
from dmt_kernels.embedding.chunk_choice import ChunkChoice, Chunks
from dmt_kernels.embedding.chunk_loss import finish_by_chunk
from dmt_kernels.embedding.exchange import EmbeddingExchange
from dmt_kernels.embedding.flat_flight import FlatFlight
from dmt_kernels.embedding.flight import Cargo, Flight, InFlight, arrive, arrive_by_chunk, depart
from dmt_kernels.embedding.owner_flight import OwnerFlight
from dmt_kernels.embedding.peer_flight import TowerRoad
from dmt_kernels.embedding.placement import obstacle_to_owners, quickest, slice_of
from dmt_kernels.embedding.row_means import TowerRowMeans, splits_columns
from dmt_kernels.embedding.sptt_flight import SpttFlight
from dmt_kernels.embedding.stage import Stage
from dmt_kernels.embedding.table_shards import TableShards
from dmt_kernels.embedding.tower_step import tower_step
from dmt_kernels.embedding.uncompiled import uncompiled
from dmt_kernels.ops import IdExchange, IdRoutes, ReceivedIds
from dmt_kernels.spec import InputError, Jagged, Payloads, Plan, derive_seed
from dmt_kernels.towers import TowerModule, TowerSlice


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
        row_means = TowerRowMeans(plan, t, r, mesh.rows, mesh.device) if splits_columns(plan, t) else None
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
            tuple(self.positions[lookup.feature] for lookup in member.lookups)
            for layout in self.layouts
            for member in layout.members
        )
        self._routes = IdRoutes(tuple(self._rows), looked_up, mesh.rank, mesh.ids.group_name)
        self._ahead: tuple[Jagged, IdExchange] | None = None  # a batch whose ids are on their way
        self._memory = BufferPool()

    @uncompiled
    def prefetch(self, sparse: Jagged) -> None:  # noqa: D102  (the base class has the words)
        ahead, self._ahead = self._ahead, None
        if ahead is not None:  # not used after all; what is on its way has to arrive
            ahead[1].wait()
        self._ahead = sparse, self._send_ids(sparse)

    @uncompiled
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

    @uncompiled
    def start(self, sparse: Jagged) -> InFlight:  # noqa: D102
        received, samples, number = self._receive_ids(sparse), self._samples(sparse), self._count()
        self._chunk_choice.depart(len(received.chunks), trains=torch.is_grad_enabled())
        return depart(self._flight(Cargo(self.shards, received, samples, self.block_order, self._memory, number)))

    def finish(self, in_flight: InFlight) -> Tensor:  # noqa: D102
        return arrive(in_flight)

    def finish_into(self, in_flight: InFlight, over_arch: Callable[..., Tensor], *rows: Tensor) -> Tensor:  # noqa: D102
        if in_flight.flight.chunks == 1:
            return super().finish_into(in_flight, over_arch, *rows)
        by_chunk = map(in_flight.flight.cut, rows)
        outputs = []
        for part in zip(arrive_by_chunk(in_flight), *by_chunk, strict=True):
            torch.clear_autocast_cache()  # or chunks would share narrow copies of weights, and add gradients up there
            outputs.append(over_arch(*part))
        return torch.cat(outputs)

    def finish_into_loss(self, in_flight: InFlight, loss: Callable[..., Tensor], *rows: Tensor) -> Tensor:  # noqa: D102
        if in_flight.flight.chunks == 1 or not in_flight.token.requires_grad:
            return super().finish_into_loss(in_flight, loss, *rows)
        return finish_by_chunk(in_flight, loss, rows)

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

    Parameters
    ----------
    plan, tower_modules, options
        As for :class:`WiredExchange`.
    placement : {"member", "owner", "auto"}
        Where tower modules stand; ``auto`` tries both, if the plan and the modules allow both.
    trial : Jagged, optional
        This rank's bags, like those to come, for ``auto`` to try with; collective over all ranks.

    Raises
    ------
    InputError
        If the plan or the modules forbid ``owner``, or ``auto`` has nothing to try with.
    """

    def __init__(
        self,
        plan: Plan,
        tower_modules: Mapping[int, TowerModule] | None,
        *,
        placement: str = "member",
        trial: Jagged | None = None,
        **options: Any,
    ) -> None:
        super().__init__(plan, tower_modules, **options)
        t, r = self.place
        layout = self.layouts[t]
        self._road = TowerRoad(layout, self.place, self.stages["tower"], self.stages["peer"], self.out_widths)
        if placement != "member" and (obstacle := obstacle_to_owners(plan, tower_modules)) is not None:
            if placement == "owner":
                raise InputError(f"tower modules cannot stand at the owners of tables: {obstacle}")
            placement = "member"
        module = None if tower_modules is None else tower_modules[t]
        if module is not None and placement != "owner":
            self.tower_modules[str(t)] = module
        if module is not None and placement != "member":
            self.tower_slices[str(t)] = slice_of(module, layout, r)
        if placement == "auto":
            if trial is None:
                raise InputError("placement 'auto' needs a batch to try both placements with")
            self.to(self.mesh.device)  # where it will run
            placement = self._quicker_placement(trial)
            unused = self.tower_slices if placement == "member" else self.tower_modules
            unused.clear()
        self.placement = placement

    @property
    def block_order(self) -> list[int]:  # noqa: D102
        return self.plan.topology.peer_order

    def whole_state(self) -> dict[str, Tensor]:  # noqa: D102
        state = super().whole_state()
        for t, part in self.tower_slices.items():
            assert isinstance(part, TowerSlice)
            whole = part.spread()
            for dtype in dict.fromkeys(value.dtype for value in whole.values()):
                alike = [value for value in whole.values() if value.dtype is dtype]
                # gloo has no sum of booleans; one of them at most is not 0
                sums = [value.view(torch.uint8) for value in alike] if dtype is torch.bool else alike
                all_reduce_flat(sums, self.mesh.tower_dense)
            prefix = f"tower_slices.{t}."
            state = {name: value for name, value in state.items() if not name.startswith(prefix)}
            state |= {f"tower_modules.{t}.{name}": value for name, value in whole.items()}
        return state

    def load_whole_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: D102
        rest = dict(state)
        for t, part in self.tower_slices.items():
            assert isinstance(part, TowerSlice)
            prefix = f"tower_modules.{t}."
            part.take({name.removeprefix(prefix): rest.pop(name) for name in state if name.startswith(prefix)})
            rest |= {f"tower_slices.{t}.{name}": value for name, value in part.state_dict().items()}
        super().load_whole_state(rest)

    def _flight(self, cargo: Cargo) -> Flight:
        return self._flight_by(self.placement, cargo)

    def _flight_by(self, placement: str, cargo: Cargo) -> Flight:
        if placement == "owner":
            (part,) = self.tower_slices.values()
            return OwnerFlight(cargo, self._road, cast(TowerSlice, part))
        module = cast(TowerModule | None, next(iter(self.tower_modules.values()), None))
        return SpttFlight(cargo, self._road, partial(tower_step, module, self._road.layout))

    def _quicker_placement(self, trial: Jagged) -> str:
        received = self._receive_ids(trial)
        cargo = Cargo(self.shards, received, self._samples(trial), self.block_order, self._memory, number=0)

        @torch.no_grad()
        def fly(placement: str) -> None:
            """There and back, but for the update of the tables."""
            with torch.enable_grad():  # so that it keeps what the way back needs
                flight = self._flight_by(placement, cargo)
                flight.depart()
            chunks = range(flight.chunks)
            flight.depart_backward(chunks, flight.arrive(chunks))  # any gradient will do
            grads = flight.arrive_backward()
            if placement == "member":
                all_reduce_flat([grad for grad in grads if grad is not None], self.mesh.tower_dense)
            flight.end()

        return quickest({placement: partial(fly, placement) for placement in ("member", "owner")}, self.mesh)


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
        return FlatFlight(cargo, layouts=self.layouts, place=self.place, **self.stages)
