"""What holds for every tower module, and the cross net."""

import pytest
import torch

from dmt_kernels.spec import InputError
from dmt_kernels.towers import CrossNet, CustomTower, DCNTower, DLRMTower, PassThrough, isometry, seeded_rng

DIMS = (3, 2, 4)
BUILDERS = {
    "none": lambda seed=0, name="tower": PassThrough(DIMS),
    "dlrm": lambda seed=0, name="tower": DLRMTower(DIMS, 2, 1, 1, seed=seed, name=name),
    "dlrm_equal_dims": lambda seed=0, name="tower": DLRMTower((3, 3, 3), 2, 1, 1, seed=seed, name=name),
    "dcn": lambda seed=0, name="tower": DCNTower(DIMS, 5, layers=2, seed=seed, name=name),
    "dcn_low_rank": lambda seed=0, name="tower": DCNTower(DIMS, 5, rank=2, seed=seed, name=name),
    "custom": lambda seed=0, name="tower": CustomTower(torch.nn.Linear(9, 4), DIMS),
}
EVERY = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
SEEDED = pytest.mark.parametrize("kind", ["dlrm", "dlrm_equal_dims", "dcn", "dcn_low_rank"])


@EVERY
@pytest.mark.parametrize("samples", [0, 1, 5])
def test_shapes(build, samples):
    module = build()
    assert module.in_width == 9
    assert module(torch.randn(samples, 9)).shape == (samples, module.out_width)


@EVERY
def test_rows_do_not_meet(build):
    module = build().double()
    x = torch.randn(6, 9, dtype=torch.float64)
    torch.testing.assert_close(module(x)[2:5], module(x[2:5]), rtol=1e-12, atol=1e-12)


@EVERY
def test_columns_of_a_wider_tensor_are_taken(build):
    module = build()
    wide = torch.randn(5, 12)
    torch.testing.assert_close(module(wide[:, 1:10]), module(wide[:, 1:10].contiguous()))


@EVERY
def test_gradcheck(build):
    module = build().double()
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *module.parameters()))


def test_pass_through_is_the_input_itself():
    x = torch.randn(4, 9)
    assert PassThrough(DIMS)(x) is x


@SEEDED
def test_values_depend_on_seed_and_name_alone(kind):
    first = BUILDERS[kind](seed=3, name="tower1").state_dict()
    torch.randn(17)
    BUILDERS["dcn"](seed=3, name="tower1")
    again = BUILDERS[kind](seed=3, name="tower1").state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    for other in (BUILDERS[kind](seed=4, name="tower1"), BUILDERS[kind](seed=3, name="tower2")):
        assert not any(torch.equal(first[key], value) for key, value in other.state_dict().items() if value.any())


@SEEDED
def test_float64_starts_from_the_same_numbers(kind):
    single = BUILDERS[kind]().state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        double = BUILDERS[kind]().state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(
        value.dtype == torch.float64 and torch.equal(value.float(), single[key]) for key, value in double.items()
    )
    assert any(not torch.equal(value, value.float().double()) for value in double.values())


@SEEDED
def test_widths_are_known_without_memory(kind):
    with torch.device("meta"):
        module = BUILDERS[kind]()
    assert module.out_width == BUILDERS[kind]().out_width
    assert all(parameter.is_meta for parameter in module.parameters())


def test_an_isometric_tower_is_the_isometry_of_its_seed():
    own = (1, 1, 3)
    one, other = (DCNTower(DIMS, 5, columns=own, seed=3, name=name) for name in ("tower1", "tower2"))
    torch.testing.assert_close(one.project.weight, ((9 / 5) ** 0.25 * isometry(DIMS, own, 3)).float())
    assert torch.equal(one.project.weight, other.project.weight)
    assert not torch.equal(one.cross.layers[0].weight, other.cross.layers[0].weight)
    linear = DLRMTower(DIMS, 5, 1, 1, columns=own, seed=3)
    assert torch.equal(linear.tower.weight, one.project.weight)
    assert torch.equal(linear.feature_weight, DLRMTower(DIMS, 5, 1, 1, seed=3).feature_weight)
    assert DLRMTower(DIMS, 5, 0, 1, columns=own).tower is None
    for wrong, said in (
        ((2, 3), "2 features with 5 columns are not 3 with 5"),
        ((2, 2, 2), "6 columns are not 3 with 5"),
    ):
        with pytest.raises(InputError, match=said):
            DCNTower(DIMS, 5, columns=wrong)


def test_output_features_of_an_isometric_dlrm_tower_start_as_parts_of_one_input_feature():
    x = torch.randn(50, 3 * 16)
    outputs = DLRMTower((16,) * 3, 8, 3, 0, columns=(8, 8, 8))(x).unflatten(1, (3, 8))
    for f, part in enumerate(x.unflatten(1, (3, 16)).unbind(1)):
        own = torch.linalg.lstsq(part, outputs[:, f]).solution
        torch.testing.assert_close(part @ own, outputs[:, f])
        torch.testing.assert_close(own.T @ own, 2**0.5 * torch.eye(8))


@pytest.mark.parametrize(
    ("dims", "columns"),
    [
        ((16,) * 5, (8,) * 5),
        ((16,) * 5, (1, 16, 3, 2, 9)),
        ((3, 8, 1, 4), (3, 8, 1, 4)),
        ((4, 2), (6, 3)),
        ((64,), (64,)),
    ],
)
def test_an_isometry_keeps_features_apart_and_has_orthonormal_blocks(dims, columns):
    matrix = isometry(dims, columns, 3)
    assert matrix.shape == (sum(columns), sum(dims)) and matrix.dtype == torch.float64
    owners = torch.zeros(sum(columns))
    for f, block in enumerate(matrix.split(dims, dim=1)):
        mine = block.abs().sum(1) > 0
        owners += mine
        rows = block[mine]
        assert len(rows) == columns[f]
        gram = rows @ rows.T if len(rows) <= dims[f] else rows.T @ rows
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-12)
    assert (owners == 1).all()
    assert torch.equal(matrix, isometry(dims, columns, 3))
    assert not torch.equal(matrix, isometry(dims, columns, 4))


def test_an_isometry_with_too_few_columns_to_share_out_mixes_features():
    columns = (0, 1, 0) * 3 + (1, 0, 1, 1)
    matrix = isometry((4,) * 13, columns, 3)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert matrix.all()
    assert not torch.equal(matrix, isometry((4,) * 13, columns, 4))


def test_seeded_rng_repeats_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    with seeded_rng(1, "tower0"):
        first = torch.nn.Linear(3, 2).weight
    with seeded_rng(1, "tower0"):
        again = torch.nn.Linear(3, 2).weight
    with seeded_rng(1, "tower1"):
        other = torch.nn.Linear(3, 2).weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dims", [(), (4, 0)])
def test_no_width_is_an_error(dims):
    with pytest.raises(InputError, match="positive widths"):
        PassThrough(dims)


@pytest.mark.parametrize("rank", [None, 3])
def test_cross_net_equals_its_formula(rank):
    net = CrossNet(5, 2, rank=rank).double()
    x0 = torch.randn(4, 5, dtype=torch.float64)
    expected = torch.empty_like(x0)
    for n in range(len(x0)):
        x = x0[n]
        for layer in net.layers:
            weight, bias = (
                (layer.weight, layer.bias) if rank is None else (layer[1].weight @ layer[0].weight, layer[1].bias)
            )
            x = torch.stack([x0[n, i] * (weight[i].dot(x) + bias[i]) + x[i] for i in range(5)])
        expected[n] = x.detach()
    torch.testing.assert_close(net(x0), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("layers", "rank"), [(0, None), (1, 0), (1, 6)])
def test_cross_net_without_layers_or_with_a_bad_rank_is_an_error(layers, rank):
    with pytest.raises(InputError, match="cross net"):
        CrossNet(5, layers, rank=rank)
