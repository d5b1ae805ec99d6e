"""What carries tests to another device: copies of arguments, results and gradients back (from the CPU to itself)."""

import torch

from dmt_kernels.ops import embedding_bag, embedding_update_
from tests.devices import there
from tests.ops.bags import random_bags


def test_results_and_gradients_come_back():
    batch = random_bags(weighted=True, features=[1, 0]).leaves()
    out, expected = (op(*batch.args, **batch.options) for op in (there(embedding_bag, "cpu"), embedding_bag))
    assert torch.equal(out, expected)
    grad = torch.rand_like(out)
    for a, b in zip(*(torch.autograd.grad(x, batch.differentiable(), grad) for x in (out, expected)), strict=True):
        assert torch.equal(a, b)


def test_changes_come_back():
    batch = random_bags()
    tables, twins = ([table.clone() for table in batch.tables] for _ in range(2))
    grad = torch.rand(4, batch.width)
    there(embedding_update_, "cpu")(tables, [], grad, *batch.args[1:], optimizer="sgd", lr=0.5)
    embedding_update_(twins, [], grad, *batch.args[1:], optimizer="sgd", lr=0.5)
    assert all(map(torch.equal, tables, twins))
    assert not torch.equal(tables[0], batch.tables[0])


def test_float64_stays_here():
    seen = []

    def op(tensors):
        seen.extend(tensors)

    tensors = [torch.zeros(1), torch.zeros(1, dtype=torch.float64)]
    there(op, "cpu")(tensors)
    assert all(a is b for a, b in zip(seen, tensors, strict=True))
