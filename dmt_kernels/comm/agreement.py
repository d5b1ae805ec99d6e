"""Ranks that were told different things find out before the first step, and say what."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_kernels.ops.groups import naming_failures
from dmt_kernels.spec import InputError


def digest_of(state: Mapping[str, object]) -> str:
    """A few letters for the names and bits of tensors: what differs has others. Of other values, names alone count."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        if isinstance(value, Tensor) and not value.is_meta:
            dense = value.detach().to_dense().cpu().resolve_conj().resolve_neg().contiguous()
            digest.update(f" {value.dtype} {list(value.shape)} ".encode())
            digest.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_agreement(facts: Iterable[tuple[str, object]], group: dist.ProcessGroup, device: torch.device) -> None:
    """Compare what the ranks of a group were told. Collective; messages are 32 bytes unless something differs.

    Parameters
    ----------
    facts : iterable of (str, object)
        What, and its value; a value is compared and shown as text. Every ``what`` occurs once.
    group : ProcessGroup
        Whose ranks.
    device : device
        Where the group's tensors live.

    Raises
    ------
    InputError
        On every rank, with the first fact in which a rank differs from the group's first.
    ExchangeError
        A rank did not come here.
    """
    told = {what: str(value) for what, value in facts}
    digest = torch.frombuffer(bytearray(hashlib.sha256(repr(told).encode()).digest()), dtype=torch.uint8).to(device)
    digests = [torch.empty_like(digest) for _ in range(dist.get_world_size(group))]
    everyone: list[dict[str, str]] = [{} for _ in digests]
    with naming_failures(group.group_name, "compared what the ranks were told"):
        dist.all_gather(digests, digest, group=group)
        if all(torch.equal(digest, other) for other in digests):
            return
        dist.all_gather_object(everyone, told, group=group)
    raise InputError(_difference(everyone, dist.get_process_group_ranks(group)))


def _difference(everyone: list[dict[str, str]], names: list[int]) -> str:
    longest_first = sorted(everyone, key=len, reverse=True)  # so that what rank 0 lacks stands where others have it
    for what in dict.fromkeys(itertools.chain.from_iterable(longest_first)):
        values = [told.get(what) for told in everyone]
        unlike = [rank for rank, value in enumerate(values) if value != values[0]]
        if unlike:
            other = values[unlike[0]]
            ranks = [str(names[rank]) for rank in unlike if values[rank] == other]
            who = f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {', '.join(ranks)} have"
            return f"{who} {_named(what, other)}, rank {names[0]} has {_named(what, values[0])}"
    return "ranks were told the same in another order"


def _named(what: str, value: str | None) -> str:
    return f"no {what}" if value is None else f"{what} {value}"
