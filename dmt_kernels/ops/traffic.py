"""Bytes that this process sent, by stage and by class of link, counted where they are sent.

A stage is what the bytes were for (``ids``, ``tower``, ``peer``, ``flat``, ``rows``, ``dense``); a link is
where they went: ``self`` (no wire), ``tower`` (another member of the own tower) or ``peer`` (another tower).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Group:
    stage: str
    links: tuple[str, ...]


_groups: dict[str, _Group] = {}
_sent_bytes: Counter[tuple[str, str]] = Counter()


def register_group(name: str, stage: str, links: Sequence[str]) -> None:
    """Say what a process group is for and over which link each of its ranks is reached.

    Parameters
    ----------
    name : str
        The group's name.
    stage : str
        What its messages are counted as.
    links : sequence of str
        ``"self"``, ``"tower"`` or ``"peer"`` for every rank of the group, in group order.
    """
    _groups[name] = _Group(stage, tuple(links))


def stage_of(group: str) -> str | None:
    """Return what a group is for, or None if nobody registered it."""
    known = _groups.get(group)
    return None if known is None else known.stage


def count_sent(group: str, sent_bytes: Sequence[int]) -> None:
    """Count one message per rank of the group. A group nobody registered is not counted."""
    known = _groups.get(group)
    if known is not None and len(known.links) == len(sent_bytes):  # else it is a later group of the same name
        for link, size in zip(known.links, sent_bytes, strict=True):
            _sent_bytes[known.stage, link] += size


def count_all_reduce(group: str, size_bytes: int) -> None:
    """Count an all-reduce as the ring algorithm's share of one rank, ``2 (n - 1) / n`` of its size.

    A ring has one successor per rank; its bytes count as ``peer`` if any rank of the group is in another tower.
    """
    if (known := _groups.get(group)) is not None and len(known.links) > 1:
        n = len(known.links)
        _sent_bytes[known.stage, "peer" if "peer" in known.links else "tower"] += 2 * (n - 1) * size_bytes // n


def sent_bytes() -> dict[tuple[str, str], int]:
    """Bytes sent by this process since the last :func:`reset`, keyed by ``(stage, link)``."""
    return dict(_sent_bytes)


def payload_bytes(sent: dict[tuple[str, str], int], link: str) -> int:
    """Embedding payload (pooled or compressed, forward and backward) in ``sent`` that went over ``link``."""
    return sum(size for (stage, over), size in sent.items() if over == link and stage in ("flat", "tower", "peer"))


def reset() -> None:
    """Forget what was counted."""
    _sent_bytes.clear()
