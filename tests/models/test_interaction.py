"""Dot interaction and MLP against their formulas."""

import pytest
import torch

from dmt_kernels.models import MLP, DotInteraction


@pytest.mark.parametrize(("samples", "features", "dim"), [(3, 5, 2), (1, 2, 7), (4, 1, 3), (0, 3, 2)])
def test_dot_interaction_equals_naive(samples, features, dim):
    interaction = DotInteraction(features)
    x = torch.randn(samples, features, dim, dtype=torch.float64)
    pairs = [(i, j) for i in range(features) for j in range(i)]
    assert interaction.out_width == len(pairs)
    expected = torch.empty(samples, len(pairs), dtype=torch.float64)
    for n in range(samples):
        for k, (i, j) in enumerate(pairs):
            expected[n, k] = sum(x[n, i, d] * x[n, j, d] for d in range(dim))
    torch.testing.assert_close(interaction(x), expected, rtol=1e-12, atol=1e-12)


def test_dot_interaction_gradcheck():
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(DotInteraction(4), (x,))


def test_dot_interaction_adds_nothing_to_checkpoints():
    assert not DotInteraction(4).state_dict()


@pytest.mark.parametrize("last_relu", [False, True])
def test_mlp_equals_naive(last_relu):
    torch.manual_seed(0)  # some outputs have to be negative
    mlp = MLP(3, (5, 4), last_relu=last_relu)
    x = torch.randn(7, 3)
    hidden = (x @ mlp.layers[0].weight.T + mlp.layers[0].bias).clamp(min=0)
    out = hidden @ mlp.layers[1].weight.T + mlp.layers[1].bias
    torch.testing.assert_close(mlp(x), out.clamp(min=0) if last_relu else out)
    assert (out < 0).any()
    assert mlp.out_width == 4


def test_mlp_without_layers_is_its_input():
    mlp = MLP(3, (), last_relu=True)
    x = torch.randn(2, 3)
    assert mlp(x) is x
    assert mlp.out_width == 3
