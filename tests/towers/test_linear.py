"""The DLRM-style module is one linear map, whatever its parts."""

import math

import pytest
import torch

from dmt_kernels.spec import InputError
from dmt_kernels.towers import DCNTower, DLRMTower, PassThrough, TowerModule, TowerSlice


def randomised(module):
    """Give biases values too: they start at 0, which would hide a misplaced one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


LINEAR = pytest.mark.parametrize(
    ("dims", "out_dim", "c", "p"),
    [
        pytest.param((4, 4, 4), 3, 2, 0, id="tower_only"),
        pytest.param((4, 4, 4), 3, 0, 2, id="features_only"),
        pytest.param((5, 5, 5), 2, 3, 1, id="both"),
        pytest.param((2, 7, 3), 3, 2, 2, id="mixed_dims"),
        pytest.param((6,), 1, 1, 1, id="one_feature"),
    ],
)


@LINEAR
def test_weight_and_bias_equal_forward(dims, out_dim, c, p):
    module = randomised(DLRMTower(dims, out_dim, c, p).double())
    weight, bias = module.linear_weight_bias()
    assert weight.shape == ((c + p * len(dims)) * out_dim, sum(dims))
    assert bias.shape == (module.out_width,) == weight.shape[:1]
    x = torch.randn(7, sum(dims), dtype=torch.float64)
    torch.testing.assert_close(module(x), x @ weight.T + bias, rtol=1e-12, atol=1e-12)


@LINEAR
def test_gradients_through_weight_and_bias_equal_those_of_forward(dims, out_dim, c, p):
    module = randomised(DLRMTower(dims, out_dim, c, p).double())
    parameters = list(module.parameters())
    x = torch.randn(3, sum(dims), dtype=torch.float64)
    weight, bias = module.linear_weight_bias()
    fused = torch.autograd.grad((x @ weight.T + bias).square().sum(), parameters)
    plain = torch.autograd.grad(module(x).square().sum(), parameters)
    torch.testing.assert_close(fused, plain, rtol=1e-11, atol=1e-11)


def test_columns_are_tower_features_then_those_of_each_feature():
    module = randomised(DLRMTower((2, 3), 4, 1, 2).double())
    x = torch.randn(5, 5, dtype=torch.float64)
    out = module(x)
    first, second = module.feature_weight.split([2, 3])
    torch.testing.assert_close(out[:, :4], module.tower(x))
    torch.testing.assert_close(out[:, 4:12], x[:, :2] @ first + module.feature_bias[0])
    torch.testing.assert_close(out[:, 12:], x[:, 2:] @ second + module.feature_bias[1])


def test_features_start_with_the_fans_of_their_own_matrix():
    wide, narrow = DLRMTower((1000, 2), 4, 0, 1).feature_weight.split([1000, 2])
    for block, fans in ((wide, 1004), (narrow, 6)):
        assert 0.7 * math.sqrt(6 / fans) < block.abs().max() <= math.sqrt(6 / fans)


@pytest.mark.parametrize(("c", "p"), [(0, 0), (-1, 1), (1, -1)])
def test_no_output_feature_is_an_error(c, p):
    with pytest.raises(InputError, match=f"c={c} and p={p}"):
        DLRMTower((4, 4), 2, c, p)


def test_others_are_not_linear():
    assert PassThrough((2, 3)).linear_weight_bias() is None
    assert DCNTower((2, 3), 4).linear_weight_bias() is None


@LINEAR
def test_slices_add_up_to_the_module(dims, out_dim, c, p):
    module = randomised(DLRMTower(dims, out_dim, c, p).double())
    shuffled = torch.randperm(sum(dims), generator=torch.Generator().manual_seed(2)).tolist()
    shares = [shuffled[:2], [], shuffled[2:]]
    slices = [TowerSlice(module, columns, has_bias=i == 1) for i, columns in enumerate(shares)]
    x = torch.randn(7, sum(dims), dtype=torch.float64)
    total = torch.zeros(7, module.out_width, dtype=torch.float64)
    for columns, part in zip(shares, slices, strict=True):
        weight, bias = part.weight_bias()
        assert weight.shape == (module.out_width, len(columns))
        assert (bias is not None) == (not columns), "the second has it"
        total = total + x[:, columns] @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(total, module(x), rtol=1e-12, atol=1e-12)

    # Every parameter is in one slice, and has there the gradient that it has in the whole.
    total.square().sum().backward()
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert torch.equal(sum(part.spread()[name] for part in slices), parameter)
    for part in slices:
        for parameter in part.parameters():
            if parameter.numel():
                parameter.data.copy_(parameter.grad)
    for name, parameter in module.named_parameters():
        grad = sum(part.spread()[name] for part in slices)
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-11, atol=1e-11)


def test_a_slice_takes_its_part_of_other_values():
    module, other = (randomised(DLRMTower((2, 3), 2, 1, 1)) for _ in range(2))
    part = TowerSlice(module, [4, 1], has_bias=True)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3)
    part.take(other.state_dict())
    assert torch.equal(part.weight_bias()[0], other.linear_weight_bias()[0][:, [4, 1]])
    assert torch.equal(part.weight_bias()[1], other.linear_weight_bias()[1])


class _Masked(TowerModule):
    """A linear map with buffers: one with an entry per input column, one without."""

    def __init__(self) -> None:
        super().__init__((2, 3), 4)
        self.linear = torch.nn.Linear(5, 4)
        self.register_buffer("mask", torch.tensor([True, False, True, True, False]))
        self.register_buffer("steps", torch.tensor(3))

    def linear_weight_bias(self):
        return self.linear.weight * self.mask, self.linear.bias

    def column_axes(self):
        return {"linear.weight": 1, "mask": 0}


def test_slices_keep_buffers():
    module = _Masked()
    slices = [TowerSlice(module, columns, has_bias=i == 1) for i, columns in enumerate([[4, 0], [1, 2, 3]])]
    state = module.state_dict()
    spread = [part.spread() for part in slices]
    assert all(values.keys() == state.keys() for values in spread)
    for name, value in state.items():
        assert torch.equal(sum(values[name].to(value.dtype) for values in spread).to(value.dtype), value), name
    slices[0].double()
    assert slices[0].spread()["linear.weight"].dtype is torch.float64
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    for part in slices:
        part.take(other)
        assert not part.module.mask.any() and part.module.steps == 0


def test_shared_parameters_cannot_be_cut():
    module = _Masked()
    module.again = module.linear
    with pytest.raises(InputError, match="shares parameters"):
        TowerSlice(module, [0], has_bias=True)


def test_what_is_not_linear_cannot_be_cut():
    with pytest.raises(InputError, match="DCNTower cannot be cut"):
        TowerSlice(DCNTower((2, 3), 4), [0], has_bias=True)
