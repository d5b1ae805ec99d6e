"""Lookups under torch.compile: one graph, forward and backward, whatever the number of ids."""

import torch

from dmt_kernels.ops import embedding_bag, tower_pool
from tests.ops.bags import random_bags


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = torch.nn.ParameterList(random_bags(dtype=torch.float64).tables)
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 48, dtype=torch.float64).view(6, 8))
        self.bias = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))

    def forward(self, ids, offsets, weights):
        tables = list(self.tables)
        bags = {"per_sample_weights": weights, "pooling": ["mean", "sum"]}
        pooled = embedding_bag(tables, ids, offsets, **bags)
        projected = tower_pool(tables, ids, offsets, self.weight, self.bias, **bags)
        return projected.tanh().sum(0) * pooled.square().sum()


def test_fullgraph_with_changing_numbers_of_ids():
    torch._dynamo.reset()
    eager = Tower()
    compiled = torch.compile(eager, fullgraph=True)
    for call, samples in enumerate([4, 6, 9]):
        batch = random_bags(seed=call, samples=samples, dtype=torch.float64, weighted=True).leaves()
        weights = batch.options["per_sample_weights"]
        expected = eager(batch.ids, batch.offsets, weights)
        stance = "fail_on_recompile" if call == 2 else "default"  # sizes have become symbols by then
        with torch.compiler.set_stance(stance):
            actual = compiled(batch.ids, batch.offsets, weights)
        torch.testing.assert_close(actual, expected)
        wanted = [weights, *eager.parameters()]
        grads = [torch.autograd.grad(out, wanted, torch.ones_like(out)) for out in (actual, expected)]
        for mine, right in zip(*grads, strict=True):
            torch.testing.assert_close(mine, right)
