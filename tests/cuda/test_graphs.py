"""What only a device can show: a step of lookup, product and update is captured in a CUDA graph, and replayed."""

import pytest
import torch

from dmt_kernels.ops import embedding_bag, embedding_update_, raise_missing_ids, tower_pool
from tests.devices import on_cuda

pytestmark = on_cuda
ROWS, DIM, SAMPLES, LENGTH = 1000, 64, 200, 3


class Step:
    """Tables of their own, and one batch."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tables = [torch.randn(ROWS, DIM, generator=generator).cuda() for _ in range(3)]
        self.states = [torch.ones(ROWS).cuda() for _ in self.tables]
        self.weight = torch.randn(16, 3 * DIM, generator=generator).cuda()
        self.ids = torch.randint(ROWS, (3 * SAMPLES * LENGTH,), generator=generator).cuda()
        self.offsets = torch.arange(0, len(self.ids) + 1, LENGTH).cuda()
        self.grad = torch.randn(SAMPLES, 3 * DIM, generator=generator).cuda()

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        bags = (self.ids, self.offsets)
        pooled, out = embedding_bag(self.tables, *bags), tower_pool(self.tables, *bags, self.weight)
        embedding_update_(self.tables, self.states, self.grad, *bags, lr=0.1)
        return pooled, out


def test_a_captured_step_is_the_step():
    Step().run()  # makes what the first call of a process makes
    step, other = Step(), Step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step.run()
    for _ in range(3):
        graph.replay()
        for actual, expected in zip(captured, other.run(), strict=True):
            assert torch.equal(actual, expected)
    for actual, expected in zip(step.tables + step.states, other.tables + other.states, strict=True):
        assert torch.equal(actual, expected)
    raise_missing_ids("cuda")


def test_ids_out_of_range_are_raised_at_the_end():
    step = Step()
    step.ids[5] = ROWS
    before = [table.clone() for table in step.tables]
    step.run()
    assert all(map(torch.equal, step.tables, before))
    with pytest.raises(RuntimeError, match=f"id {ROWS} of table 0, feature 0, sample 1, block 0 is out of range"):
        raise_missing_ids("cuda")
    raise_missing_ids("cuda")
