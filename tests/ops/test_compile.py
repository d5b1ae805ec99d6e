"""Lookups and updates under torch.compile: one graph, forward and backward, whatever the number of ids."""

import torch

from dmt_kernels.ops import embedding_bag, embedding_update_, tower_pool
from tests.devices import devices
from tests.ops.bags import random_bags
from tests.tolerances import assert_close


def dtype_on(device):
    return torch.float64 if device == "cpu" else torch.float32


def batch_on(device, **options):
    """ids, offsets and weights of random bags, of another number in every call."""
    batch = random_bags(dtype=dtype_on(device), weighted=True, **options)
    return [x.to(device) for x in (batch.ids, batch.offsets, batch.options["per_sample_weights"])]


def stance_of(call):
    """Sizes have become symbols by the third call."""
    return torch.compiler.set_stance("fail_on_recompile" if call == 2 else "default")


class Tower(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.tables = torch.nn.ParameterList(random_bags(dtype=dtype).tables)
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 48, dtype=dtype).view(6, 8))
        self.bias = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=dtype))

    def forward(self, ids, offsets, weights):
        tables = list(self.tables)
        bags = {"per_sample_weights": weights, "pooling": ["mean", "sum"]}
        pooled = embedding_bag(tables, ids, offsets, **bags)
        projected = tower_pool(tables, ids, offsets, self.weight, self.bias, **bags)
        return projected.tanh().sum(0) * pooled.square().sum()


@devices
def test_fullgraph_with_changing_numbers_of_ids(device):
    torch._dynamo.reset()
    eager = Tower(dtype_on(device)).to(device)
    compiled = torch.compile(eager, fullgraph=True)
    for call, samples in enumerate([4, 6, 9]):
        ids, offsets, weights = batch_on(device, seed=call, samples=samples)
        weights.requires_grad_()
        expected = eager(ids, offsets, weights)
        with stance_of(call):
            actual = compiled(ids, offsets, weights)
        assert_close(actual, expected)
        wanted = [weights, *eager.parameters()]
        grads = [torch.autograd.grad(out, wanted, torch.ones_like(out)) for out in (actual, expected)]
        for mine, right in zip(*grads, strict=True):
            assert_close(mine, right)


def look_up_and_update(tables, states, ids, offsets, weights):
    """What the second lookup finds, the update has written; what the first one found, it has not."""
    before = embedding_bag(tables, ids, offsets, per_sample_weights=weights)
    embedding_update_(tables, states, before.tanh(), ids, offsets, per_sample_weights=weights, lr=0.1)
    return before * 2, embedding_bag(tables, ids, offsets, per_sample_weights=weights) * 2


@devices
def test_updates_keep_their_place(device):
    torch._dynamo.reset()
    compiled = torch.compile(look_up_and_update, fullgraph=True)
    tables = [table.to(device) for table in random_bags(dtype=dtype_on(device)).tables]
    states = [table.new_ones(len(table)) for table in tables]
    mine = [[tensor.clone() for tensor in tensors] for tensors in (tables, states)]
    for call, samples in enumerate([4, 6, 9]):
        batch = batch_on(device, seed=call, samples=samples)
        expected = look_up_and_update(tables, states, *batch)
        with stance_of(call):
            actual = compiled(*mine, *batch)
        for a, b in zip([*actual, *mine[0], *mine[1]], [*expected, *tables, *states], strict=True):
            assert_close(a, b)
