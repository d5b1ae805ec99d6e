"""One stage of an exchange: an all-to-all of blocks of rows, in flight between start and wait.

It is what eager mode runs on; what is traced are the functional collectives of ``all_to_all.py``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmt_kernels.ops import traffic
from dmt_kernels.ops._engine import choose_engine
from dmt_kernels.ops.groups import exchange_failure
from dmt_kernels.ops.reference import stage as composition
from dmt_kernels.spec import InputError, WireFormat

_engine, engine_in_use = choose_engine()


class Ticket:
    """A stage in flight: what :func:`stage_start` and :func:`stage_expect` return, for one :func:`stage_wait`.

    If nobody waits for it, or it fails, what travels through the backend stays in memory as long as its group lives,
    since other ranks may still be at it. The compiled engine frees it when stages of a later group begin.
    """

    __slots__ = ("_format", "_group", "_is_sent", "_stage")

    def __init__(self, group: str, stage: Any, format: WireFormat | None) -> None:
        self._group, self._stage, self._format, self._is_sent = group, stage, format, False

    def promise(self, tensor: Tensor) -> None:
        """Let torch's own ``wait_tensor(tensor)`` wait for the stage; the compiled engine only."""
        self._stage.promise(tensor)


def stage_start(
    blocks: Sequence[Tensor],
    out: Sequence[Tensor],
    group: str,
    format: WireFormat | None = None,
    *,
    seed: int | None = None,
    step: int = 0,
) -> Ticket:
    """Start sending ``blocks[i]`` to rank ``i`` of the group.

    After :func:`stage_wait`, ``out[i]`` holds what rank ``i`` sent. Every rank of the group starts the same stages in
    the same order, also with nothing to send. Any number may be in flight. Until one is waited for nobody may write to
    its ``blocks``, or touch ``out``.

    If there is nothing to convert, contiguous blocks are sent from where they are, and received in place; others are
    packed and unpacked, a pass each. The composition takes all of a side alike: in place if they lie in memory one
    behind the other, in order and without gaps (views of one buffer), else packed. What is converted is encoded in one
    pass and decoded in one.

    Parameters
    ----------
    blocks : sequence of Tensor [N_i, D_i]
        For every rank of the group, in group order. float64, float32, float16 or bfloat16, all of one dtype and
        device; columns adjacent in memory, rows any stride apart; empty ones are allowed. Or messages, uint8: rows that
        are encoded in ``format`` already, by :func:`~dmt_kernels.ops.embedding_bag_blocks_`, say.
    out : sequence of Tensor [M_i, E_i]
        From every rank, of the rows' dtype, or uint8 to leave them encoded; ``out[i]`` here has the shape of
        ``blocks[j]`` there, if this is rank ``j`` (which is not checked). They are written behind autograd's back.
    group : str
        Name of the process group.
    format : WireFormat, optional
        How rows travel (:func:`~dmt_kernels.ops.wire_encode`). None, or fp32 for float32, carries their own bits.
    seed, step : int
        Of stochastic rounding, as in :func:`~dmt_kernels.ops.wire_encode`, whose ``first_row`` counts the rows over the
        blocks in order.

    Returns
    -------
    Ticket
        For :func:`stage_wait`.

    Raises
    ------
    ExchangeError
        The group's backend refuses.
    InputError
        There are not as many blocks as ranks, or they do not fit each other.
    """
    ticket = stage_expect(out, group, format)
    stage_send(ticket, blocks, seed=seed, step=step)
    return ticket


def stage_expect(out: Sequence[Tensor], group: str, format: WireFormat | None = None) -> Ticket:
    """Begin a stage by saying where its blocks are to arrive; :func:`stage_send` follows.

    The two are :func:`stage_start`. Over gloo a block travels once its receiver has said that it is ready, and that
    word queues behind what this rank sends before; so whoever knows of several stages expects them all, then sends.

    Parameters
    ----------
    out, group, format
        As for :func:`stage_start`. Every rank of the group expects the same stages in the same order.

    Raises
    ------
    ExchangeError
        The group's backend refuses.
    InputError
        As for :func:`stage_start`.
    """
    try:
        stage = _engine.expect(out, group, _code(format, out))
    except ValueError as error:
        raise InputError(f"stage_expect: {error}") from None
    except RuntimeError as error:
        raise exchange_failure(group, "expected blocks", error) from error
    return Ticket(group, stage, format)


def stage_send(ticket: Ticket, blocks: Sequence[Tensor], *, seed: int | None = None, step: int = 0) -> None:
    """Send the blocks of a stage that :func:`stage_expect` has begun.

    Parameters
    ----------
    ticket : Ticket
        The stage; its format is that of the blocks.
    blocks, seed, step
        As for :func:`stage_start`. Every rank of a group sends its stages in the same order.

    Raises
    ------
    ExchangeError
        The group's backend refuses.
    InputError
        As for :func:`stage_start`; or they were sent before, or that failed.
    """
    if ticket._is_sent or ticket._stage is None:
        raise InputError("stage_send: the blocks of a stage are sent once")
    stage, ticket._stage = ticket._stage, None  # nobody can wait for what fails here
    try:
        stage.send(blocks, _code(ticket._format, blocks), seed, step)
    except ValueError as error:
        raise InputError(f"stage_send: {error}") from None
    except RuntimeError as error:
        raise exchange_failure(ticket._group, "sent its blocks", error) from error
    ticket._stage, ticket._is_sent = stage, True
    traffic.count_sent(ticket._group, stage.sent_bytes)


def stage_wait(ticket: Ticket) -> None:
    """Wait until what :func:`stage_start` promised has arrived.

    On CUDA it is the current stream that waits, not the host. Ctrl-C is heeded at once while blocks come through shared
    memory, and else when the backend's wait ends.

    Raises
    ------
    ExchangeError
        A rank of the group died, or did not answer within the group's timeout.
    InputError
        It was waited for before, or has not been sent.
    """
    if ticket._stage is None or not ticket._is_sent:
        raise InputError("stage_wait: nothing is in flight under this ticket; a stage is sent and waited for once")
    stage, ticket._stage = ticket._stage, None
    try:
        stage.wait()
    except RuntimeError as error:
        raise exchange_failure(ticket._group, "waited for the others' blocks", error) from error


def stage_share_memory(group: str) -> list[int]:
    """Let ranks of one host send each other their blocks through memory instead of the backend. Collective.

    For blocks on the CPU, from the group's next stage on: a copy on either side takes the place of the kernel's way
    through sockets. Two ranks do so if neither has ``DMT_SHARED_MEMORY=0`` in its environment, both have one network
    and one ``/proc``, may open each other's files there, and have no limit on the size of files (``ulimit -f``).
    Others, and all on the composition, keep to the backend.
    :func:`~dmt_kernels.comm.build_mesh` has done it for its groups.

    What messages take of memory at one time is kept. Empty blocks are messages, too, so that ranks notice unlike sizes.
    A stage fails whose message to such a rank is the 1,024th since one that has not been received.

    Parameters
    ----------
    group : str
        Name of a process group with a backend for the CPU. Every rank of it calls this alike, on the same engine.

    Returns
    -------
    list of int
        The ranks of the group that this rank shares memory with.

    Raises
    ------
    ExchangeError
        There is no such group, or a rank of it does not answer.
    """
    try:
        return _engine.share_memory(group, os.environ.get("DMT_SHARED_MEMORY") != "0")
    except RuntimeError as error:
        raise exchange_failure(group, "looked for ranks that share memory", error) from error


def stage_copied_bytes() -> int:
    """Bytes that stages of this process have packed and unpacked so far because they did not lie as they travel.

    Encoding and decoding are not counted.
    """
    return _engine.copied_bytes()


def engine_is_compiled() -> bool:
    """Whether stages run on the compiled engine, not on its composition of ``torch.distributed``."""
    return _engine is not composition


def _code(format: WireFormat | None, blocks: Sequence[Tensor]) -> int | None:
    keeps_bits = not blocks or (format is WireFormat.FP32 and blocks[0].dtype is torch.float32)
    return None if keeps_bits or format is None else format.code
