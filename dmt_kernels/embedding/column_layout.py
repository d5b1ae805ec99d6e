"""Which columns of whose pooled block make up which feature.

A *lookup* is one feature in one shard. A member's pooled block has its lookups side by side: first those it sends
through the tower stage, then those of replicated tables, which it looks up for itself and keeps.
"""

import functools
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

    def assemble(self, blocks: Sequence[Tensor], kept: Tensor | None) -> Tensor:
        """Put the members' columns into the order of the tower's features.

        Parameters
        ----------
        blocks : sequence of Tensor
            ``[N, D_m]`` of every member.
        kept : Tensor or None
            ``[N, kept_width]`` of replicated tables.

        Returns
        -------
        Tensor
            ``[N, D_t]``. Columns of a column split stand side by side; partial sums of a row split are added in
            row order.
        """
        pieces: list[Tensor] = []
        for sources in self._sources:
            columns = [
                (kept if member is None else blocks[member])[:, lookup.column : lookup.column + lookup.shard.dim]  # type: ignore[index]
                for member, lookup in sources
            ]
            if sources[0][1].shard.splits_rows:
                pieces.append(sum(columns[1:], start=columns[0]))
            else:
                pieces.extend(columns)
        return torch.cat(pieces, dim=1)

    @functools.cached_property
    def _sources(self) -> list[list[tuple[int | None, Lookup]]]:
        """For every feature the members (None: kept) and lookups that it comes from, in row and column order."""
        found: dict[str, list[tuple[int | None, Lookup]]] = {feature: [] for feature in self.features}
        for m, member in enumerate(self.members):
            for lookup in member.sent:
                found[lookup.feature].append((m, lookup))
        for lookup in self.members[0].kept:
            found[lookup.feature].append((None, lookup))
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
