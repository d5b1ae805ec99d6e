"""Stages on the CPU with gloo and on GPUs with NCCL: every format, many in flight, and in a CUDA graph."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dmt_kernels.comm import build_mesh
from dmt_kernels.ops import stage_start, stage_wait
from dmt_kernels.ops.stage import engine_is_compiled, stage_copied_bytes
from dmt_kernels.spec import WireFormat
from tests.devices import devices
from tests.ops.bags import DTYPES
from tests.ops.stages import LAYOUTS, Case, same_bits
from tests.ranks import run_ranks


def _same(actual: Tensor, expected: Tensor) -> bool:
    """The same bits; of a NaN any, since devices make NaNs of their own when they decode."""
    is_nan = expected.isnan()
    return actual.isnan().equal(is_nan) and same_bits(actual.masked_fill(is_nan, 0), expected.masked_fill(is_nan, 0))


def _check(case: Case, rank: int, out: list[Tensor]) -> None:
    same = same_bits if case.format is None else _same
    for source, block in enumerate(out):
        assert same(block.cpu(), case.expected(source, rank)), f"{case}: from {source} to {rank}"


def _many_in_flight(rank: int, device: str, world: int) -> None:
    mesh = build_mesh(1, world, device=device, timeout_s=60)
    groups = itertools.cycle([mesh.tower, mesh.tower, mesh.flat, mesh.ids])
    layouts = itertools.cycle(itertools.product(LAYOUTS, LAYOUTS))
    cases = [
        Case(world, dtype, format, *next(layouts), seed=seed, number=number, device=device)
        for number, (dtype, format, seed) in enumerate(itertools.product(DTYPES, [None, *WireFormat], (None, 7)))
    ]
    copied = stage_copied_bytes()
    for first in range(0, len(cases), 6):
        waiting = []
        for case in cases[first : first + 6]:
            sent, out = case.sent(rank), case.received(rank)
            copied += case.copied_bytes(sent, out, piecewise=engine_is_compiled())
            ticket = stage_start(sent, out, next(groups).group_name, case.format, seed=case.seed, step=case.number)
            del sent  # the engine alone holds it
            waiting.append((case, ticket, out))
        for case, ticket, out in waiting:
            stage_wait(ticket)
            _check(case, rank, out)
    assert stage_copied_bytes() == copied, "contiguous blocks travel as they lie"
    _around_the_own(rank, device, world, mesh.tower.group_name)


def _around_the_own(rank: int, device: str, world: int, group: str) -> None:
    """Equal blocks of one piece of memory, of which the own one stays: at the ranks between, that leaves a gap."""
    before = stage_copied_bytes()
    sent, out = (torch.full((world, 5, 3), float(rank + 1), device=device) for _ in range(2))
    leaving, arriving = list(sent.unbind(0)), list(out.unbind(0))
    leaving[rank] = arriving[rank] = sent[rank][:0]
    stage_wait(stage_start(leaving, arriving, group))
    assert torch.equal(out[:, 0, 0].cpu(), torch.arange(1.0, world + 1))
    assert stage_copied_bytes() == before or not engine_is_compiled()


@devices
@pytest.mark.parametrize("world", [2, 3])
def test_many_stages_in_flight_on_several_groups(device: str, world: int) -> None:
    run_ranks(_many_in_flight, world, device, world, device=device, timeout_s=200)


def _recorded(step: Callable[[], None], device: str) -> Callable[[], None]:
    """`step` as a CUDA graph, or as it is."""
    if device == "cpu":
        return step
    step()  # whatever is done once, is done before
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's watchdog goes on beside it
        step()
    return graph.replay


def _there_and_back(rank: int, device: str) -> None:
    world = 2
    mesh = build_mesh(1, world, device=device, timeout_s=60)
    sent, between, out, columns = (torch.zeros(world, 3, 4, device=device) for _ in range(4))
    side_by_side = torch.zeros(3, 4 * world, device=device)

    def step() -> None:
        there = stage_start(sent.unbind(0), between.unbind(0), mesh.tower.group_name)
        aside = stage_start(sent.unbind(0), side_by_side.split(4, dim=1), mesh.flat.group_name)  # is unpacked
        stage_wait(there)
        back = stage_start((between * 2).unbind(0), out.unbind(0), mesh.tower.group_name)
        stage_wait(aside)
        columns.copy_(side_by_side.view(3, world, 4).transpose(0, 1))
        stage_wait(back)

    replay = _recorded(step, device)
    for number in range(3):
        sent.copy_(torch.arange(sent.numel()).view_as(sent) + 1000 * rank + 100 * number)
        replay()
        assert torch.equal(out, sent * 2)
        own = torch.stack([sent[rank] + 1000 * (source - rank) for source in range(world)])
        assert torch.equal(columns, own)


@devices
def test_a_step_of_stages_is_recorded_and_replayed(device: str) -> None:
    run_ranks(_there_and_back, 2, device, device=device)
