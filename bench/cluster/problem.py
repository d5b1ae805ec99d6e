"""What is trained: tables, towers, batches and models of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_kernels.planner import partition_features, place
from dmt_kernels.spec import Batch, InputError, Jagged, Plan, Table, TableOptimizer, Topology
from dmt_kernels.towers import TowerModule, build_tower_module, common_out_dim

SEED = 0
DENSE_LR = 1e-3
TABLE_OPTIMIZER = TableOptimizer("rowwise_adagrad", lr=0.02)


@dataclass(frozen=True)
class Problem:
    """Tables of one size, as many for every rank; bags of one length.

    Raises
    ------
    InputError
        If there is nothing to train, or the hosts or the tables do not go round.
    """

    hosts: int = 2  # T, a tower each
    members: int = 2  # R, ranks of a host
    tables: int = 16  # F, one feature each
    rows: int = 20_000  # E
    dim: int = 64  # D
    samples: int = 1024  # B of a rank
    bag: int = 4  # ids of a feature
    compression: int = 4
    dense_width: int = 13
    batches: int = 4  # that the steps go round in

    def __post_init__(self) -> None:
        if self.hosts < 2 or self.members < 1:
            raise InputError(f"{self.hosts} hosts of {self.members} members: at least 2 hosts of 1 make a cluster")
        sizes = ("tables", "rows", "dim", "samples", "bag", "compression", "dense_width", "batches")
        for name in sizes:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: there is nothing to train with less than 1")
        if self.tables % self.world or self.dim % self.compression:
            raise InputError(
                f"{self.tables} tables of dim {self.dim}: the tables must go round {self.world} ranks, "
                f"and the dim {self.compression} times"
            )

    @property
    def topology(self) -> Topology:
        return Topology(self.hosts, self.members)

    @property
    def world(self) -> int:
        return self.hosts * self.members

    def plan(self) -> Plan:
        names = [f"{i:02}" for i in range(self.tables)]
        tables = [Table(f"t{name}", self.rows, self.dim, (f"f{name}",)) for name in names]
        return place(tables, partition_features(tables, self.hosts), self.topology)

    def tower_modules(self, plan: Plan) -> dict[int, TowerModule]:
        """One linear map per tower."""
        dims = [plan.tower_dims(t) for t in range(self.hosts)]
        out_dim = common_out_dim("dlrm", dims, self.compression)
        return {
            t: build_tower_module(
                "dlrm", dims[t], compression=self.compression, out_dim=out_dim, seed=SEED, name=f"tower{t}"
            )
            for t in range(self.hosts)
        }

    def rank_batches(self, rank: int) -> list[Batch]:
        """A rank's share of the batches, features in the plan's order."""
        return [self._batch([draw]) for draw in self._draws(rank)]

    def global_batches(self) -> list[Batch]:
        """The shares of all ranks, one after the other."""
        return [self._batch(draws) for draws in zip(*(self._draws(rank) for rank in range(self.world)), strict=True)]

    def _draws(self, rank: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(SEED + 1 + rank)
        return [
            (
                torch.rand(self.samples, self.dense_width, generator=generator),
                torch.randint(0, self.rows, (self.tables, self.samples, self.bag), generator=generator),
                torch.randint(0, 2, (self.samples,), generator=generator).float(),
            )
            for _ in range(self.batches)
        ]

    def _batch(self, draws: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Batch:
        dense, ids, label = (
            torch.cat(parts, axis) for parts, axis in zip(zip(*draws, strict=True), (0, 1, 0), strict=True)
        )
        bags = self.tables * len(label)
        sparse = Jagged(ids.flatten(), torch.arange(bags + 1) * self.bag)
        return Batch(dense, sparse, label, torch.ones(len(label)), self.samples * self.world)
