"""Which columns of whose pooled block make up which feature.

A *lookup* is one feature in one shard. A member's pooled block has its lookups side by side: first those it sends
through the tower stage, then those of replicated tables, which it looks up for itself and keeps.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_kernels.spec import Plan, Shard


@dataclass(frozen=True)
class Lookup:
    """One feature in one shard, at ``column`` of its member's sent (or kept) columns."""

    feature: str
    shard: Shard
    column: int


@dataclass(frozen=True)
class MemberLayout:
    """Lookups of one member, in the order of its pooled columns."""

    sent: tuple[Lookup, ...]
    kept: tuple[Lookup, ...]

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """Sent lookups, then kept ones."""
        return self.sent + self.kept

    @property
    def sent_width(self) -> int:
        """``D_r``: columns that go through the tower stage."""
        return sum(lookup.shard.dim for lookup in self.sent)

    @property
    def kept_width(self) -> int:
        """Columns of replicated tables."""
        return sum(lookup.shard.dim for lookup in self.kept)


@dataclass(frozen=True)
class Run:
    """Columns ``[column, column + width)`` of a tower: the sum of these, ``(block, its first column)``."""

    column: int
    width: int
    sources: tuple[tuple[int, int], ...]

    def continues_in(self, other: Run) -> bool:
        """Whether ``other`` is the next columns of the same blocks."""
        return other.sources == tuple((b, start + self.width) for b, start in self.sources)


@dataclass(frozen=True)
class TowerLayout:
    """Members of one tower, and the order of its features."""

    features: tuple[str, ...]
    members: tuple[MemberLayout, ...]

    @property
    def sent_widths(self) -> list[int]:
        """``D_m`` of every member."""
        return [member.sent_width for member in self.members]

    @property
    def kept_width(self) -> int:
        """Columns of replicated tables, the same on every member."""
        return self.members[0].kept_width

    @property
    def width(self) -> int:
        """``D_t``."""
        return sum(run.width for run in self.runs)

    def assemble(self, blocks: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """Put the members' columns into the order of the tower's features.

        Parameters
        ----------
        blocks : sequence of Tensor
            ``[N, D_m]`` of every member and, last, ``[N, kept_width]`` of replicated tables.
        out : Tensor, optional
            ``[N, D_t]`` to write to, where no gradient is wanted.

        Returns
        -------
        Tensor
            ``[N, D_t]``. Columns of a column split stand side by side; partial sums of a row split are added in
            row order.
        """
        pieces = []
        for run in self.runs:
            first, *others = (blocks[b][:, start : start + run.width] for b, start in run.sources)
            pieces.append(sum(others, start=first))
        return torch.cat(pieces, dim=1, out=out)

    def scatter(self, grad: Tensor, blocks: Sequence[Tensor]) -> None:
        """Write the gradients of :meth:`assemble`'s blocks into ``blocks``, given that of its result, ``[N, D_t]``."""
        for run in self.runs:
            for b, start in run.sources:
                blocks[b][:, start : start + run.width].copy_(grad[:, run.column : run.column + run.width])

    @functools.cached_property
    def runs(self) -> list[Run]:
        """The tower's columns in order, cut where their sources change."""
        runs: list[Run] = []
        column = 0
        for lookups in self._sources:
            whole = [lookups] if lookups[0][1].shard.splits_rows else [[source] for source in lookups]
            for sources in whole:
                run = Run(column, sources[0][1].shard.dim, tuple((b, lookup.column) for b, lookup in sources))
                column += run.width
                if runs and runs[-1].continues_in(run):
                    run = Run(runs[-1].column, runs[-1].width + run.width, runs.pop().sources)
                runs.append(run)
        return runs

    @functools.cached_property
    def columns_of_blocks(self) -> list[int]:
        """For every column of every block, side by side, the tower's column that it belongs to."""
        starts = [0, *itertools.accumulate((*self.sent_widths, self.kept_width))]
        columns = [0] * starts[-1]
        for run in self.runs:
            for b, start in run.sources:
                first = starts[b] + start
                columns[first : first + run.width] = range(run.column, run.column + run.width)
        return columns

    @functools.cached_property
    def is_side_by_side(self) -> bool:
        """Whether the tower's columns are those of its blocks as they come."""
        return self.columns_of_blocks == list(range(len(self.columns_of_blocks)))

    @functools.cached_property
    def _sources(self) -> list[list[tuple[int, Lookup]]]:
        """For every feature the blocks and lookups that it comes from, in row and column order."""
        found: dict[str, list[tuple[int, Lookup]]] = {feature: [] for feature in self.features}
        for m, member in enumerate(self.members):
            for lookup in member.sent:
                found[lookup.feature].append((m, lookup))
        for lookup in self.members[0].kept:
            found[lookup.feature].append((len(self.members), lookup))
        return [
            sorted(found[feature], key=lambda source: (source[1].shard.row_start, source[1].shard.col_start))
            for feature in self.features
        ]


def tower_layouts(plan: Plan) -> list[TowerLayout]:
    """The layout of every tower; every rank computes all of them alike."""
    return [
        TowerLayout(
            plan.partition.towers[t],
            tuple(_member_layout(plan, t, r) for r in range(plan.topology.members)),
        )
        for t in range(plan.topology.towers)
    ]


def _member_layout(plan: Plan, tower: int, member: int) -> MemberLayout:
    shards = plan.member_shards(tower, member)
    return MemberLayout(
        _side_by_side([shard for shard in shards if not shard.replicated]),
        _side_by_side([shard for shard in shards if shard.replicated]),
    )


def _side_by_side(shards: Sequence[Shard]) -> tuple[Lookup, ...]:
    lookups, column = [], 0
    for shard in shards:
        for feature in shard.table.features:
            lookups.append(Lookup(feature, shard, column))
            column += shard.dim
    return tuple(lookups)
