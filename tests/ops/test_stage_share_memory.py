"""Blocks through shared memory: between whom, in which order, and how much memory it takes."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dmt_kernels.ops import stage_expect, stage_send, stage_share_memory, stage_start, stage_wait
from dmt_kernels.ops._engine import compiled_engine
from dmt_kernels.ops.stage import Ticket
from dmt_kernels.spec import ExchangeError
from tests.ranks import run_ranks

pytestmark = pytest.mark.skipif(compiled_engine()[0] is None, reason="the compiled engine shares memory")


def _share() -> str:
    """The name of the default group, whose ranks share memory from now on."""
    name = dist.group.WORLD.group_name
    assert len(stage_share_memory(name)) == dist.get_world_size() - 1
    return name


def _start(group: str, number: float, columns: int) -> tuple[Ticket, Tensor]:
    """A stage that brings this number, plus the rank it came from, and to where."""
    world = dist.get_world_size()
    blocks = torch.full((world, 1, columns), number + dist.get_rank())
    out = torch.full((world, 1, columns), torch.nan)
    return stage_start(list(blocks), list(out), group), out


def _arrived(out: Tensor, number: float) -> bool:
    return torch.equal(out, (number + torch.arange(float(len(out)))).view(-1, 1, 1).expand_as(out))


def _one_unwilling(rank: int) -> list[int]:
    os.environ["DMT_SHARED_MEMORY"] = str(int(rank != 1))
    group = dist.group.WORLD.group_name
    neighbours = stage_share_memory(group)
    ticket, out = _start(group, 5.0, 1000)
    stage_wait(ticket)
    assert _arrived(out, 5.0)
    return neighbours


def test_a_rank_that_is_not_willing_gets_its_blocks_another_way() -> None:
    assert run_ranks(_one_unwilling, 3) == [[2], [], [0]]


def _interrupted(rank: int) -> None:
    group, store = _share(), dist.distributed_c10d._get_default_store()
    if rank == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs behind them ignore it
        ticket, _ = _start(group, 1.0, 10)
        threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            stage_wait(ticket)  # for a rank that comes afterwards
        store.set("interrupted", "1")
    else:
        store.wait(["interrupted"])


def test_a_rank_that_waits_heeds_signals() -> None:
    run_ranks(_interrupted, 2, timeout_s=20)  # the group's own timeout is longer


def _any_order(rank: int) -> None:
    group = _share()
    sizes = (10, 1 << 20, 1, 1 << 16, 3)
    flying = [_start(group, float(10 * number), size) for number, size in enumerate(sizes)]
    for number in (3, 0, 4, 1, 2) if rank == 0 else (4, 3, 2, 1, 0):
        ticket, out = flying[number]
        stage_wait(ticket)
        assert _arrived(out, 10.0 * number), number


def test_stages_are_waited_for_in_any_order() -> None:
    run_ranks(_any_order, 2)


def _memory_bytes() -> int:
    """Of shared memory that this process has touched."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssShmem:\s+(\d+) kB", status)[1])


def _many(rank: int) -> int:
    group = _share()
    late, late_out = _start(group, 7.0, 10)  # lies in memory all the time
    for number in range(300):
        flying = [_start(group, float(number), 50_000 + number % 7) for _ in range(2)]
        for ticket, out in flying:
            stage_wait(ticket)
            assert _arrived(out, float(number))
    stage_wait(late)
    assert _arrived(late_out, 7.0)
    return _memory_bytes()


def test_memory_is_used_again() -> None:
    under_way = 1 + 2 * 2  # a rank may be ahead by a turn
    for size in run_ranks(_many, 2):
        assert size < 2 * 2 * under_way * 4 * 50_010  # both ways, and some gaps are too small


def _too_many(rank: int) -> None:
    group = _share()
    flying = [_start(group, float(number), 2) for number in range(1024)]
    with pytest.raises(
        ExchangeError, match=r"sent its blocks and lost rank \d .* of the last 1024 messages .* the first"
    ):
        _start(group, 0.0, 2)
    dist.barrier()  # nobody has taken a message before
    for number, (ticket, out) in enumerate(flying):
        stage_wait(ticket)
        assert _arrived(out, float(number))


def test_memory_has_an_end() -> None:
    run_ranks(_too_many, 2)


def _dropped(rank: int) -> None:
    """A rank does not wait for a stage whose message has come, nor for one whose message comes later."""
    group = _share()
    ticket, _ = _start(group, 0.0, 2)
    dist.barrier()  # it is there
    if rank == 0:
        del ticket
    else:
        stage_wait(ticket)
    ticket = stage_expect([torch.zeros(1, 2), torch.zeros(1, 2)], group)
    if rank == 1:
        stage_send(ticket, [torch.ones(1, 2)] * 2)
        del ticket
        dist.barrier()
    else:
        dist.barrier()
        stage_send(ticket, [torch.ones(1, 2)] * 2)  # to nobody
        stage_wait(ticket)
    _run_many(group)


def _run_many(group: str) -> None:
    """More stages than there are places for messages."""
    for number in range(1500):
        ticket, out = _start(group, float(number), 2)
        stage_wait(ticket)
        assert _arrived(out, float(number))


def test_stages_that_nobody_waits_for_are_forgotten() -> None:
    run_ranks(_dropped, 2)


def _two_threads(rank: int) -> None:
    """A thread of rank 0 waits for what rank 1 sends once rank 0 has received something else."""
    group, store = _share(), dist.distributed_c10d._get_default_store()
    blocks, outs = list(torch.ones(2, 1, 4)), torch.zeros(2, 2, 1, 4)
    first, second = (stage_expect(list(out), group) for out in outs)
    stage_send(first, blocks)
    if rank == 0:
        stage_send(second, blocks)
        waiting = threading.Thread(target=stage_wait, args=(second,))
        waiting.start()
        time.sleep(0.2)  # it is at it
        stage_wait(first)
        store.set("received", "1")
        waiting.join()
    else:
        store.wait(["received"])
        stage_send(second, blocks)
        stage_wait(first)
        stage_wait(second)
    assert torch.equal(outs, torch.ones_like(outs))


def test_threads_wait_beside_each_other() -> None:
    run_ranks(_two_threads, 2)


def _unlike(rank: int, expects: int) -> None:
    group = _share()
    blocks, out = [torch.ones(1, 5)] * 2, [torch.zeros(1, 5), torch.zeros(1, 5)]
    if rank == 1:
        out[0] = torch.zeros(expects // 4, 1)
    ticket = stage_start(blocks, out, group)
    if rank == 0:
        stage_wait(ticket)
    else:
        with pytest.raises(ExchangeError, match=f"a message of 20 bytes came where one of {expects} was expected"):
            stage_wait(ticket)
    del ticket
    _run_many(group)


@pytest.mark.parametrize("expects", [24, 0])
def test_a_block_of_another_size_is_refused(expects: int) -> None:
    run_ranks(_unlike, 2, expects)


def _nobody(rank: int) -> None:
    with pytest.raises(ExchangeError, match="looked for ranks that share memory in a stage of group 'nobody'"):
        stage_share_memory("nobody")


def test_a_group_that_is_not_there() -> None:
    run_ranks(_nobody, 1)
