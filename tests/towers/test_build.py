"""From a compression ratio to widths."""

import math

import pytest

from dmt_kernels.spec import InputError
from dmt_kernels.towers import DCNTower, DLRMTower, PassThrough, build_tower_module, common_out_dim


@pytest.mark.parametrize(
    ("dims", "compression", "out_dim", "out_width"),
    [
        pytest.param((16,) * 4, 2, 8, 32, id="exact"),
        pytest.param((16,) * 9, 2, 16, 64, id="features_rounded_down"),
        pytest.param((16,) * 4, 3, 4, 20, id="ratio_rounded_down"),
        pytest.param((10, 6, 3), 1.5, 4, 12, id="mixed_dims"),
        pytest.param((16,), 100, 4, 4, id="at_least_one_feature"),
        pytest.param((4, 4), 0.5, 4, 16, id="widening"),
    ],
)
@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
def test_width_is_the_largest_multiple_within_the_budget(kind, dims, compression, out_dim, out_width):
    module = build_tower_module(kind, dims, compression=compression, out_dim=out_dim)
    assert isinstance(module, DLRMTower if kind == "dlrm" else DCNTower)
    assert module.out_width == out_width


@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
@pytest.mark.parametrize("compression", [0.7, 1, 1.7, 2, 4, 9])
@pytest.mark.parametrize("tower_dims", [((16,) * 9, (16,) * 10), ((8, 16, 4), (32,)), ((5,), (7, 7, 7))], ids=str)
def test_towers_share_a_dim_that_every_one_can_pay_for(kind, compression, tower_dims):
    out_dim = common_out_dim(kind, tower_dims, compression)
    for dims in tower_dims:
        width = build_tower_module(kind, dims, compression=compression, out_dim=out_dim).out_width
        assert width % out_dim == 0
        assert width <= max(1, sum(dims) / compression) < width + out_dim


@pytest.mark.parametrize(
    ("compression", "out_dim"), [(1, 16), (2, 8), (3, 5), (4, 4), (8, 4), (16, 4), (36, 4), (48, 3), (1000, 1)]
)
def test_features_get_narrower_and_then_fewer(compression, out_dim):
    assert common_out_dim("dlrm", [(16,) * 9, (16,) * 10], compression) == out_dim


def test_any_width_will_do_without_dot_products():
    assert build_tower_module("dcn", (16,) * 3, compression=5).out_width == math.floor(48 / 5)


@pytest.mark.parametrize(
    ("c", "p", "expected"), [(None, 1, (1, 1)), (2, None, (2, 0)), (1, 2, (1, 2)), (None, 3, (0, 3))]
)
def test_given_c_and_p_win(c, p, expected):
    module = build_tower_module("dlrm", (8, 8, 8), compression=1.5, out_dim=4, c=c, p=p)
    assert (module.c, module.p) == expected


def test_pass_through_keeps_the_width():
    module = build_tower_module("none", (3, 5), compression=4)
    assert isinstance(module, PassThrough)
    assert module.out_width == 8
    assert common_out_dim("none", [(8, 8), (8,)], 4) == 8


@pytest.mark.parametrize("build", [build_tower_module, lambda kind, dims, **k: common_out_dim(kind, [dims], **k)])
@pytest.mark.parametrize("kind", ["none", "dlrm", "dcn"])
@pytest.mark.parametrize("compression", [0, -1, math.nan, math.inf])
def test_compression_must_be_positive(build, kind, compression):
    with pytest.raises(InputError, match="compression must be a positive number, not"):
        build(kind, (4, 4), compression=compression)


@pytest.mark.parametrize("build", [build_tower_module, lambda kind, dims: common_out_dim(kind, [dims])])
def test_unknown_kind_names_the_known(build):
    with pytest.raises(InputError, match="'mlp' is unknown; choose one of none, dlrm, dcn"):
        build("mlp", (4, 4))


def test_pass_through_with_unequal_dims_has_no_common_dim():
    with pytest.raises(InputError, match=r"one embedding dim, not \[4, 8\]"):
        common_out_dim("none", [(4, 4), (8,)])


def test_given_columns_are_the_width_and_the_start():
    module = build_tower_module("dlrm", (16, 16), columns=(6, 2), out_dim=4, isometric=True)
    assert module.out_width == 8
    apart = module.tower.weight.unflatten(1, (2, 16)).abs().sum(2) > 0
    assert apart.sum(0).tolist() == [6, 2]
    one = build_tower_module("dlrm", (16, 16), columns=(6, 2), out_dim=4, c=1, isometric=True)
    assert (one.tower.weight.unflatten(1, (2, 16)).abs().sum(2) > 0).sum(0).tolist() == [2, 2]
    for columns, said in (
        ((6, 1), "7 columns are no multiple of the 4"),
        ((8,), "not those of 2"),
        ((9, -1), "not those of 2"),
    ):
        with pytest.raises(InputError, match=said):
            build_tower_module("dlrm", (16, 16), columns=columns, out_dim=4)


def test_a_dim_of_no_columns_is_an_error():
    with pytest.raises(InputError, match="at least 1, not 0"):
        build_tower_module("dlrm", (4, 4), out_dim=0)
