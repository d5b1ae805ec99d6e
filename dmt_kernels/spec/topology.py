"""Where ranks stand: towers, and members inside a tower."""

from dataclasses import dataclass

from dmt_kernels.spec.errors import InputError


@dataclass(frozen=True)
class Topology:
    """``T`` towers of ``R`` members; rank ``g = t * R + r``.

    A tower is one host by default and several hosts when ``R`` is a multiple of the ranks per host;
    nothing here depends on which.

    Parameters
    ----------
    towers : int
        ``T``.
    members : int
        ``R``.

    Raises
    ------
    InputError
        If either is below 1.
    """

    towers: int
    members: int

    def __post_init__(self) -> None:
        if self.towers < 1 or self.members < 1:
            raise InputError(f"{self.towers} towers of {self.members} members: both must be at least 1")

    @property
    def world(self) -> int:
        """``W = T * R``."""
        return self.towers * self.members

    def tower_of(self, rank: int) -> int:
        """Tower ``t`` of a global rank."""
        return rank // self.members

    def member_of(self, rank: int) -> int:
        """Member index ``r`` of a global rank inside its tower."""
        return rank % self.members

    def rank_of(self, tower: int, member: int) -> int:
        """Global rank of member ``r`` of tower ``t``."""
        return tower * self.members + member

    def tower_ranks(self, tower: int) -> list[int]:
        """Ranks of one tower, ascending: the tower group."""
        return [self.rank_of(tower, member) for member in range(self.members)]

    def peer_ranks(self, member: int) -> list[int]:
        """Ranks with one member index, by tower: the peer group."""
        return [self.rank_of(tower, member) for tower in range(self.towers)]

    @property
    def peer_order(self) -> list[int]:
        """Position of each source rank in peer order: member-major, then tower.

        ``peer_order[t * R + r] == r * T + t``: the block that rank ``(t, r)`` fills in a
        ``[R, T, B, ...]`` tensor.
        """
        return [self.member_of(g) * self.towers + self.tower_of(g) for g in range(self.world)]
