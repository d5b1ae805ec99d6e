"""Process groups by name, and what to say when something fails between their ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from dmt_kernels.ops import traffic
from dmt_kernels.spec import ExchangeError

_PROBE_TAG = 0x40000000  # of no message


def resolve_group(name: Any) -> dist.ProcessGroup:
    """Return the group of that name.

    Raises
    ------
    RuntimeError
        There is none.
    """
    return dist.distributed_c10d._resolve_process_group(name)


def exchange_failure(group: str, doing: str, error: RuntimeError) -> ExchangeError:
    """Make the error of a backend one that names this rank, the stage and the group, and whom it lost if that shows.

    Parameters
    ----------
    group : str
        The group's name.
    doing : str
        What this rank did when it failed, in the past tense.
    error : RuntimeError
        What the backend, or the lookup of the group, raised; ``peer``, if it has that, is the rank of the group whose
        message failed.
    """
    stage = traffic.stage_of(group)
    what = f"the {stage} stage" if stage else "a stage"
    words = " ".join(str(error).split())
    members, lost = [], []
    with contextlib.suppress(RuntimeError):  # there may be no such group
        members = dist.get_process_group_ranks(resolve_group(group))
        lost = [members[peer] for peer in _lost_peers(resolve_group(group), error)]
    return ExchangeError(
        f"rank {dist.get_rank() if dist.is_initialized() else '?'} {doing}{_say(' and lost ', lost)} in {what}"
        f" of group {group!r}{_say(' (', members, ')')}, and the backend said: {words}"
    )


@contextlib.contextmanager
def naming_failures(group: str, doing: str) -> Iterator[None]:
    """Turn what a backend raises inside into :func:`exchange_failure`."""
    try:
        yield
    except ExchangeError:
        raise
    except RuntimeError as error:
        raise exchange_failure(group, doing, error) from error


def _lost_peers(group: dist.ProcessGroup, error: RuntimeError) -> list[int]:
    """Ranks of a group without which it failed, as far as this rank can tell."""
    others = [rank for rank in range(group.size()) if rank != group.rank()]
    if len(others) < 2:
        return others
    named = [peer] if (peer := getattr(error, "peer", None)) is not None else []
    # gloo closes all connections when one of them is late, so that they tell nothing more.
    if "timed out" in str(error).lower() or dist.get_backend(group) != dist.Backend.GLOO:
        return named
    return [rank for rank in others if _is_gone(group, rank)] or named


def _is_gone(group: dist.ProcessGroup, rank: int) -> bool:
    """Whether gloo's connection to a rank is closed: it then refuses to receive. What it expects else, nobody sends."""
    try:
        group.recv([torch.empty(1)], rank, _PROBE_TAG)
    except RuntimeError:
        return True
    return False


def _say(before: str, ranks: list[int], after: str = "") -> str:
    if not ranks:
        return ""
    return f"{before}rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}{after}"
