"""What carries tests to another device: copies of arguments, results and gradients back (from the CPU to itself)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


def test_sparse_gradients_come_back():
    batch = random_bags(features=[0, 1]).leaves()
    there(embedding_bag, "cpu")(*batch.args, **batch.options, sparse=True).sum().backward()
    assert all(table.grad.is_sparse for table in batch.tables)


def test_changes_come_back():
    batch = random_bags()
    tables, twins = ([table.clone() for table in batch.tables] for _ in range(2))
    grad = torch.rand(4, batch.width)
    there(embedding_update_, "cpu")(tables, [], grad, *batch.args[1:], optimizer="sgd", lr=0.5)
    embedding_update_(twins, [], grad, *batch.args[1:], optimizer="sgd", lr=0.5)
    assert all(map(torch.equal, tables, twins))
    assert not torch.equal(tables[0], batch.tables[0])


def test_float64_is_skipped_and_not_run_here():
    with pytest.raises(pytest.skip.Exception, match="float64"):
        there(embedding_bag, "cpu")(*random_bags(dtype=torch.float64).args)


@given(st.sampled_from([torch.float32, torch.float64]))
def test_of_examples_those_with_float64_are(dtype):
    there(embedding_bag, "cpu")(*random_bags(dtype=dtype).args)
    assert dtype == torch.float32
