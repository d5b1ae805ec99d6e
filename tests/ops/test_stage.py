"""Stages, on every engine there is: what arrives, in whatever memory; what is copied; what a failure leaves."""

import contextlib
import ctypes
import itertools
import os
import platform
import re
import signal
import struct
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from dmt_kernels.comm import build_mesh, traffic
from dmt_kernels.ops import stage, wire_decode, wire_encode
from dmt_kernels.ops._engine import choose_engine, compiled_engine
from dmt_kernels.ops.reference import stage as composition
from dmt_kernels.spec import ExchangeError, InputError, WireFormat
from tests.ops.bags import DTYPES
from tests.ops.engines import engines, use
from tests.ops.stages import LAYOUTS, Case, same_bits
from tests.ranks import DIED, run_ranks


def _cases(world: int) -> list[Case]:
    formats = [None, *WireFormat]
    layouts = itertools.cycle(itertools.product(LAYOUTS, LAYOUTS))
    plain = [Case(world, torch.float32, None, sent, received) for sent, received in itertools.product(LAYOUTS, LAYOUTS)]
    mixed = [
        Case(world, dtype, format, *next(layouts), seed=seed, number=number)
        for number, (dtype, format, seed) in enumerate(itertools.product(DTYPES, formats, (None, 7)))
    ]
    return plain + mixed


def _check_arrived(case: Case, rank: int, out: list[Tensor]) -> None:
    for source, block in enumerate(out):
        assert same_bits(block, case.expected(source, rank)), f"{case}: from {source} to {rank}"


def _every_case(rank: int, engine: str, world: int) -> None:
    use(engine)
    group = dist.group.WORLD.group_name
    for case in _cases(world):
        sent, received = case.sent(rank), case.received(rank)
        before = stage.stage_copied_bytes()
        stage.stage_wait(stage.stage_start(sent, received, group, case.format, seed=case.seed, step=case.number))
        _check_arrived(case, rank, received)
        copied = case.copied_bytes(sent, received, piecewise=engine != "composition")
        assert stage.stage_copied_bytes() - before == copied, case


@engines
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_blocks_arrive_in_any_layout_and_format(engine: str, world: int) -> None:
    run_ranks(_every_case, world, engine, world)


def _in_flight(rank: int, engine: str) -> None:
    use(engine)
    mesh = build_mesh(1, 2, timeout_s=30)
    formats = (None, WireFormat.INT8, WireFormat.BF16, None, WireFormat.FP16)
    cases = [Case(2, torch.float32, format, "columns", "together", number=i) for i, format in enumerate(formats)]
    groups = [
        mesh.tower.group_name,
        mesh.tower.group_name,
        mesh.flat.group_name,
        mesh.tower.group_name,
        mesh.ids.group_name,
    ]
    out = [case.received(rank) for case in cases]
    tickets = []
    for case, group, received in zip(cases, groups, out, strict=True):
        # The engine alone holds what is sent.
        tickets.append(stage.stage_start(case.sent(rank), received, group, case.format, step=case.number))
    for case, ticket, received in zip(cases, tickets, out, strict=True):
        stage.stage_wait(ticket)
        _check_arrived(case, rank, received)


@engines
def test_several_stages_are_in_flight(engine: str) -> None:
    run_ranks(_in_flight, 2, engine)


def _encoded(rank: int, engine: str) -> None:
    """Rows that are encoded before; what arrives is decoded, or left as it is."""
    use(engine)
    group, world, format = dist.group.WORLD.group_name, 3, WireFormat.FP8
    case = Case(world, torch.float16, format, "apart", "apart", number=4)
    sent = [wire_encode(block, format) for block in case.sent(rank)]
    for keeps in (False, True):
        received = case.received(rank)
        if keeps:
            received = [block.new_empty(len(block), format.row_bytes(block.shape[1])).byte() for block in received]
        stage.stage_wait(stage.stage_start(sent, received, group, format))
        if keeps:
            columns = [case.shape(source, rank)[1] for source in range(world)]
            received = [
                wire_decode(block, dim, format, case.dtype) for block, dim in zip(received, columns, strict=True)
            ]
        _check_arrived(case, rank, received)
    assert stage.stage_copied_bytes() == 0 or engine == "composition"


@engines
def test_messages_travel_as_they_are(engine: str) -> None:
    run_ranks(_encoded, 3, engine)


def _unencodable(rank: int, engine: str) -> None:
    """What cannot be encoded is this rank's mistake, and loses nobody."""
    use(engine)
    group, out = dist.group.WORLD.group_name, list(torch.empty(2, 3, 4))
    for blocks, sentence in (
        (torch.zeros(2, 3, 4, dtype=torch.int64), "floating point"),
        (torch.zeros(2, 4, 3).mT, "adjacent"),
    ):
        for send, received in ((list(blocks), out), (list(torch.zeros(2, 3, 4)), list(blocks))):
            with pytest.raises(InputError, match=sentence):
                stage.stage_start(send, received, group, WireFormat.BF16)


@engines
def test_rows_that_cannot_be_encoded_are_refused(engine: str) -> None:
    run_ranks(_unencodable, 2, engine)


def _beside_others(rank: int, engine: str) -> None:
    """Messages of the user's own, in the same group, which count from tag 0."""
    use(engine)
    mine, theirs = torch.full((5,), 7.0), torch.empty(5)
    sent = dist.isend(mine, 1) if rank == 0 else None
    case = Case(2, torch.float32, None, "apart", "apart")
    received = case.received(rank)
    stage.stage_wait(stage.stage_start(case.sent(rank), received, dist.group.WORLD.group_name))
    _check_arrived(case, rank, received)
    if rank == 1:
        dist.recv(theirs, 0)
        assert torch.equal(theirs, mine)
    if sent is not None:
        sent.wait()


@engines
def test_stages_take_no_message_of_others(engine: str) -> None:
    run_ranks(_beside_others, 2, engine)


def _traffic(rank: int, engine: str) -> None:
    use(engine)
    mesh = build_mesh(1, 2, timeout_s=30)
    blocks = [torch.ones(3, 5), torch.ones(4, 5)]
    for format, row_bytes in ((None, 20), (WireFormat.INT8, 12)):
        traffic.reset()
        out = [torch.empty(3 + rank, 5), torch.empty(3 + rank, 5)]
        stage.stage_wait(stage.stage_start(blocks, out, mesh.tower.group_name, format))
        rows = {"self": 3 + rank, "tower": 4 - rank}
        assert traffic.sent_bytes() == {("tower", link): n * row_bytes for link, n in rows.items()}


@engines
def test_traffic_is_counted_with_its_scales(engine: str) -> None:
    run_ranks(_traffic, 2, engine)


def _leaves(rank: int, engine: str) -> None:
    use(engine)
    weight = torch.ones(2, 3, requires_grad=True)
    saved = torch.zeros(2, 2, 3)
    for format in (None, WireFormat.BF16):
        for out in (list(saved), list(saved.flip(0))):
            version = out[0]._version
            stage.stage_wait(stage.stage_start([weight, weight], out, dist.group.WORLD.group_name, format))
            assert out[0]._version == version and not out[0].requires_grad
    assert torch.equal(saved, torch.ones(2, 2, 3))


@engines
def test_autograd_does_not_see_a_stage(engine: str) -> None:
    run_ranks(_leaves, 2, engine)


def _unfit(rank: int, engine: str) -> None:
    use(engine)
    mesh = build_mesh(1, 2, timeout_s=10)
    group, fit = mesh.tower.group_name, [torch.ones(2, 2)] * 2
    mixed = [(torch.float32, torch.float64), (torch.float64, torch.float32)]  # this rank's own block fits
    for blocks, sentence in (
        (fit[:1], "a stage among 2 ranks needs as many blocks, got 1"),
        ([], "a stage "),
        ([torch.ones(2)] * 2, "a block has 2 dimensions"),
        ([torch.ones(3, 2)] * 2, "a rank sends itself 24 bytes, and expects 16"),
        ([torch.ones(2, 4).half()] * 2, "blocks are .*, and .* is expected"),
        ([torch.ones(2, 2, dtype=t) for t in mixed[rank]], "blocks of a stage have one dtype"),
    ):
        ticket = stage.stage_expect([torch.empty(2, 2)] * 2, group)
        with pytest.raises(InputError, match=f"stage_send: {sentence}"):
            stage.stage_send(ticket, blocks)
    with pytest.raises(InputError, match="stage_expect: a stage "):
        stage.stage_expect(fit * 2, group)


@engines
def test_blocks_that_do_not_fit_are_nobody_elses_fault(engine: str) -> None:
    run_ranks(_unfit, 2, engine)


def _threads(rank: int, engine: str) -> None:
    use(engine)
    mesh = build_mesh(1, 2, timeout_s=10)
    store = dist.distributed_c10d._get_default_store()
    blocks, out = [torch.ones(2, 2)] * 2, [torch.empty(2, 2), torch.empty(2, 2)]
    if rank == 0:
        # Late enough that the main thread waits by then, for rank 1, which waits for this one.
        other = threading.Thread(target=lambda: (time.sleep(0.5), store.set("ran", "1")))
        other.start()
    else:
        store.wait(["ran"])
    stage.stage_wait(stage.stage_start(blocks, out, mesh.tower.group_name))
    if rank == 0:
        other.join()


@engines
def test_a_wait_lets_other_threads_run(engine: str) -> None:
    run_ranks(_threads, 2, engine)


def _without_rank_2(rank: int, engine: str, fate: str) -> str:
    use(engine)
    mesh = build_mesh(1, 3, timeout_s=5)
    if rank == 2:
        time.sleep(0.5)  # the others are at it
        if fate == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(8)  # longer than the 5 s after which the others give up
        return "woke"
    blocks = list(torch.zeros(3, 1 << 20, 1))
    ticket = stage.stage_start(blocks, list(torch.empty(3, 1 << 20, 1)), mesh.tower.group_name)
    with pytest.raises(ExchangeError) as raised:
        stage.stage_wait(ticket)
    time.sleep(1)  # stay until all have seen that it was rank 2
    return str(raised.value)


@engines
@pytest.mark.parametrize("fate", ["dies", "sleeps"])
def test_survivors_say_who_they_are_and_what_they_waited_for(engine: str, fate: str) -> None:
    *survivors, fallen = run_ranks(_without_rank_2, 3, engine, fate, mortal=True, timeout_s=30)
    assert fallen == {"dies": DIED, "sleeps": "woke"}[fate]
    for rank, sentence in enumerate(survivors):
        # The composition knows of connections that are closed, not of blocks that do not come.
        lost = "" if (engine, fate) == ("composition", "sleeps") else " and lost rank 2"
        assert sentence.startswith(f"rank {rank} waited for the others' blocks{lost} in the tower stage of group ")
        assert "(ranks 0, 1, 2)" in sentence and "\n" not in sentence
        assert {"dies": "closed by peer", "sleeps": "Timed out"}[fate] in sentence


def _no_group(rank: int, engine: str) -> None:
    use(engine)
    with pytest.raises(ExchangeError, match="rank 0 expected blocks in a stage of group 'nobody', and"):
        stage.stage_start([torch.ones(1, 1)], [torch.ones(1, 1)], "nobody")


@engines
def test_a_group_that_is_not_there(engine: str) -> None:
    run_ranks(_no_group, 1, engine)


def _two_waits(rank: int, engine: str) -> None:
    use(engine)
    ticket = stage.stage_start([torch.ones(1, 1)], [torch.ones(1, 1)], dist.group.WORLD.group_name)
    stage.stage_wait(ticket)
    with pytest.raises(InputError, match="nothing is in flight under this ticket"):
        stage.stage_wait(ticket)


def _policies_of_loops(rank: int) -> None:
    use("compiled")
    sent, received = (list(torch.zeros(2, 1).split(1)) for _ in range(2))
    stage.stage_wait(stage.stage_start(sent, received, dist.group.WORLD.group_name))
    names = {}
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            names[int(path.parent.name)] = path.read_text().strip()
    threads = [thread for thread, name in names.items() if name == "gloo_tcp_loop"]
    assert threads, "gloo has renamed its threads: csrc/comm/scheduling.h looks for them by name"
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}


@pytest.mark.skipif(compiled_engine()[0] is None, reason="the compiled engine says it")
def test_threads_that_watch_connections_preempt_nobody() -> None:
    run_ranks(_policies_of_loops, 2)


SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}  # the system call's number


def _slice_ns() -> int:
    """Of this thread; 0 on Linux before 6.12."""
    attributes = ctypes.create_string_buffer(48)
    number = SCHED_GETATTR[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, 0, attributes, len(attributes), 0) == 0
    return struct.unpack_from("Q", attributes, 24)[0]


def _slices(rank: int) -> list[int]:
    use("compiled")
    slices = [_slice_ns()]
    sent, received = (list(torch.zeros(2, 1).split(1)) for _ in range(2))
    stage.stage_wait(stage.stage_start(sent, received, dist.group.WORLD.group_name))
    slices.append(_slice_ns())
    later = threading.Thread(target=lambda: slices.append(_slice_ns()))
    later.start()
    later.join()
    return slices


@pytest.mark.skipif(compiled_engine()[0] is None, reason="the compiled engine asks for them")
@pytest.mark.skipif(platform.machine() not in SCHED_GETATTR, reason="the number of sched_getattr is not known")
@pytest.mark.skipif(os.sched_getscheduler(0) != os.SCHED_OTHER, reason="other policies are left alone")
def test_who_posts_messages_is_seldom_preempted() -> None:
    for before, after, of_another_thread in run_ranks(_slices, 2):
        if before == 0:
            pytest.skip("this kernel has one slice for all")
        assert after == 20_000_000 > before == of_another_thread


@engines
def test_a_ticket_is_good_for_one_wait(engine: str) -> None:
    run_ranks(_two_waits, 1, engine)


def _halves(rank: int, engine: str) -> None:
    """Many stages are expected before any is sent; and what is not sent, or badly, cannot be waited for."""
    use(engine)
    group = dist.group.WORLD.group_name
    cases = [Case(2, torch.float32, WireFormat.FP16, "apart", "columns", number=number) for number in range(4)]
    out = [case.received(rank) for case in cases]
    tickets = [stage.stage_expect(to, group, case.format) for case, to in zip(cases, out, strict=True)]
    for case, ticket in zip(cases, tickets, strict=True):
        with pytest.raises(InputError, match="nothing is in flight under this ticket"):
            stage.stage_wait(ticket)
        stage.stage_send(ticket, case.sent(rank), step=case.number)
        with pytest.raises(InputError, match="blocks of a stage are sent once"):
            stage.stage_send(ticket, case.sent(rank), step=case.number)
    for case, ticket, received in zip(cases, tickets, out, strict=True):
        stage.stage_wait(ticket)
        _check_arrived(case, rank, received)
    ticket = stage.stage_expect([torch.zeros(1, 2)] * 2, group)
    with pytest.raises(InputError, match="needs as many blocks"):
        stage.stage_send(ticket, [torch.zeros(1, 2)])  # one for two ranks
    with pytest.raises(InputError, match="nothing is in flight under this ticket"):
        stage.stage_wait(ticket)


@engines
def test_stages_are_expected_before_they_are_sent(engine: str) -> None:
    run_ranks(_halves, 2, engine)


def _one_without_a_wait(rank: int, engine: str) -> None:
    use(engine)
    group = dist.group.WORLD.group_name
    cases = [Case(2, torch.float32, None, "apart", "apart", number=number) for number in range(3)]
    out = [case.received(rank) for case in cases]
    tickets = [stage.stage_start(case.sent(rank), to, group) for case, to in zip(cases, out, strict=True)]
    watch = StorageWeakRef(out[rank][1 - rank].untyped_storage())
    del tickets[rank], out[rank], cases[rank]
    assert engine != "compiled" or not watch.expired(), "gloo may be writing there"
    for case, ticket, received in zip(cases, tickets, out, strict=True):
        stage.stage_wait(ticket)
        _check_arrived(case, rank, received)


@engines
def test_a_stage_that_one_rank_does_not_wait_for_disturbs_no_other(engine: str) -> None:
    run_ranks(_one_without_a_wait, 2, engine)


def _two_lives(rank: int, engine: str) -> None:
    """Rank 0 starts two stages, of which one fails, and rank 1 none; then there are groups of the same names again."""
    use(engine)
    store = dist.distributed_c10d._get_default_store()
    name = build_mesh(1, 2, timeout_s=2).tower.group_name
    if rank == 0:
        blocks, out = list(torch.zeros(2, 5, 1)), list(torch.empty(2, 5, 1))
        watch = StorageWeakRef(out[0].untyped_storage())
        tickets = [stage.stage_start(blocks, out, name) for _ in range(2)]
        with pytest.raises(ExchangeError, match="and lost rank 1 in the tower stage"):
            stage.stage_wait(tickets[0])
        del tickets, blocks, out
        assert not watch.expired() or engine != "compiled", "the group lives"
        store.set("failed", "1")
    store.wait(["failed"])
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.PrefixStore("second", store), rank=rank, world_size=2)
    tower = build_mesh(1, 2, timeout_s=10).tower.group_name
    assert tower == name
    case = Case(2, torch.float32, None, "together", "columns")
    received = case.received(rank)
    stage.stage_wait(stage.stage_start(case.sent(rank), received, tower))
    _check_arrived(case, rank, received)
    assert rank == 1 or watch.expired()


@engines
def test_after_a_failure_groups_of_the_same_names_begin_anew(engine: str) -> None:
    run_ranks(_two_lives, 2, engine)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        ({"communication_engine": "DMT_COMM=off"}, r"the engine was not built \(DMT_COMM=off\)"),
        ({"torch_version": "2.3.1+cpu"}, "the engine was built with torch 2.3, this is "),
        ({}, r"the engine cannot be loaded \(.*_comm.*\)"),
    ],
    ids=["not built", "another torch", "does not load"],
)
def test_the_composition_takes_over(build: dict, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"communication_engine": "on", "torch_version": str(torch.__version__)}
    module = types.SimpleNamespace(build_info=lambda: here | build)
    monkeypatch.setitem(sys.modules, "dmt_kernels._C", module)
    monkeypatch.setitem(sys.modules, "dmt_kernels._comm", None)  # what the import system raises ImportError for
    engine, words = choose_engine()
    assert engine is composition
    assert re.match("composition of torch.distributed: " + reason, words)
