"""Process groups by name, and what to say when something fails between their ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from dmt_kernels.ops import traffic
from dmt_kernels.spec import ExchangeError


def resolve_group(name: Any) -> dist.ProcessGroup:
    """Return the group of that name.

    Raises
    ------
    RuntimeError
        There is none.
    """
    return dist.distributed_c10d._resolve_process_group(name)


def exchange_failure(group: str, doing: str, error: RuntimeError) -> ExchangeError:
    """Make the error of a backend one that names this rank, the stage and the group.

    Parameters
    ----------
    group : str
        The group's name.
    doing : str
        What this rank did when it failed, in the past tense.
    error : RuntimeError
        What the backend, or the lookup of the group, raised.
    """
    stage = traffic.stage_of(group)
    what = f"the {stage} stage" if stage else "a stage"
    words = " ".join(str(error).split())
    return ExchangeError(
        f"rank {dist.get_rank() if dist.is_initialized() else '?'} {doing} in {what} of group {group!r}"
        f"{_members(group)}, and the backend said: {words}"
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


def _members(group: str) -> str:
    try:
        ranks = dist.get_process_group_ranks(resolve_group(group))
    except RuntimeError:
        return ""
    return f" (ranks {', '.join(map(str, ranks))})"
