"""DLRM and DCN over a plain exchange: formulas, seeds, and flat equal to pass-through towers."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from dmt_kernels.models import DCN, DLRM
from dmt_kernels.spec import InputError, Jagged
from dmt_kernels.towers import DLRMTower, PassThrough, build_tower_module, common_out_dim, isometry
from dmt_kernels.train.assemble import build_model, set_up
from dmt_kernels.train.config import TrainConfig

ROWS, DIM, FEATURES, DENSE = 11, 4, 5, 3


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small to share: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class PlainExchange(nn.Module):
    """Bags of one id, looked up in one table per feature, then the towers' modules."""

    def __init__(self, towers):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tables = nn.Parameter(torch.randn(FEATURES, ROWS, DIM, generator=generator))
        self.towers = nn.ModuleList(towers)
        self.out_widths = [tower.out_width for tower in towers]

    def forward(self, sparse):
        pooled = self.tables[torch.arange(FEATURES), sparse.ids.view(FEATURES, -1).T].flatten(1)
        parts = pooled.split([tower.in_width for tower in self.towers], dim=1)
        return torch.cat([tower(part) for tower, part in zip(self.towers, parts, strict=True)], dim=1)


class FixedExchange(nn.Module):
    """Returns given embeddings."""

    def __init__(self, embeddings, out_widths):
        super().__init__()
        self.embeddings, self.out_widths = embeddings, out_widths

    def forward(self, sparse):
        return self.embeddings


def one_id_per_bag(samples):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(ROWS, (FEATURES * samples,), generator=generator)
    return Jagged(ids, torch.arange(FEATURES * samples + 1))


def model_of(kind, exchange, out_dim=DIM, dense_width=DENSE, seed=0):
    if kind == "dlrm":
        return DLRM(exchange, dense_width, out_dim, bottom=(6,), top=(7,), seed=seed)
    return DCN(exchange, dense_width, deep=(7,), seed=seed)


def test_dlrm_equals_its_formula():
    x = torch.randn(6, 3 * 2)
    model = model_of("dlrm", FixedExchange(x, [4, 2]), out_dim=2)
    dense = torch.randn(6, DENSE)
    d = model.bottom(dense)
    vectors = [d, x[:, :2], x[:, 2:4], x[:, 4:]]
    dots = [(vectors[i] * vectors[j]).sum(1) for i in range(4) for j in range(i)]
    expected = model.top(torch.cat([d, torch.stack(dots, dim=1)], dim=1))[:, 0]
    torch.testing.assert_close(model(dense, None), expected)


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("dense_width", [DENSE, 0])
def test_dot_products_stay_float32_under_autocast(dense_width, expand):
    exchange, seen = FixedExchange(torch.randn(6, 6), [4, 2]), []
    exchange.tower_dims = [(4, 4), (4,)]
    model = DLRM(exchange, dense_width, 2, expand=expand)
    model.top.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(6, dense_width), None)
    assert seen == [torch.float32]


def test_dcn_equals_its_formula():
    x = torch.randn(6, 5)
    model = model_of("dcn", FixedExchange(x, [3, 2]))
    dense = torch.randn(6, DENSE)
    both = torch.cat([dense, x], dim=1)
    torch.testing.assert_close(model(dense, None), model.deep(model.cross(both))[:, 0])


def expanded(kind, exchange, **options):
    if kind == "dlrm":
        return DLRM(exchange, DENSE, 4, expand=True, bottom=(6,), top=(7,), **options)
    return DCN(exchange, DENSE, expand=True, deep=(7,), **options)


def test_what_arrives_may_be_mapped_to_as_many_columns_as_features_have():
    x, dense = torch.randn(6, 5), torch.randn(6, DENSE)
    exchange = FixedExchange(x, [3, 2])
    exchange.tower_dims = [(4, 4), (4,)]
    crossed, multiplied = expanded("dcn", exchange), expanded("dlrm", exchange)
    mapped = x @ crossed.expand.weight.T + crossed.expand.bias
    assert mapped.shape[1] == 12
    both = torch.cat([dense, mapped], dim=1)
    torch.testing.assert_close(crossed(dense, None), crossed.deep(crossed.cross(both))[:, 0])
    over = model_of("dlrm", FixedExchange(mapped, [12]), out_dim=4)
    assert all(torch.equal(p, multiplied.get_parameter(name)) for name, p in over.named_parameters())
    torch.testing.assert_close(multiplied(dense, None), over(dense, None))


def test_features_of_several_dims_are_mapped_to_one_for_dot_products():
    exchange = FixedExchange(torch.randn(6, 6), [3, 3])
    exchange.tower_dims = [(2, 4), (6,)]
    model = expanded("dlrm", exchange, columns=[(1, 2), (3,)])
    assert model(torch.randn(6, DENSE), None).shape == (6,)
    blocks = [isometry((4,), (width,), 0).T.float() for width in (1, 2, 3)]
    assert torch.equal(model.expand.weight, torch.block_diag(*blocks))


def test_maps_without_columns_differ_by_seed_alone():
    exchange = FixedExchange(torch.randn(6, 5), [3, 2])
    exchange.tower_dims = [(4, 4), (4,)]
    first, again, other = (expanded("dcn", exchange, seed=seed).expand.weight for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def towers_of(model, tower_module, **options):
    config = TrainConfig(data="synthetic:1000", local=True, exchange="sptt", towers=3, members=1, seed=7)
    return build_model(set_up(dataclasses.replace(config, model=model, tower_module=tower_module, **options)), None)


def projection(tower):
    return tower.tower.weight if isinstance(tower, DLRMTower) else tower.project.weight


@pytest.mark.parametrize("compression", [2, 4])
@pytest.mark.parametrize("tower_module", ["dlrm", "dcn"])
@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
def test_a_model_starts_by_undoing_what_its_towers_compress(kind, tower_module, compression):
    model = towers_of(kind, tower_module, compression=compression)
    both = model.expand.weight @ torch.block_diag(*(projection(t) for t in model.exchange.tower_modules.values()))
    torch.testing.assert_close(both @ both, compression**0.25 * both)  # a projection but for that
    assert torch.linalg.matrix_rank(both) == sum(model.exchange.out_widths)
    own = torch.block_diag(*(torch.ones(16, 16) for _ in range(26)))
    assert not both[own == 0].any()


@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
def test_behind_isometric_towers_that_do_not_compress_there_is_no_map(kind):
    model = towers_of(kind, kind, compression=1)
    assert isinstance(model.expand, nn.Identity)
    for tower in model.exchange.tower_modules.values():
        weight = projection(tower)
        torch.testing.assert_close(weight @ weight.T, torch.eye(tower.in_width))
        own = torch.block_diag(*(torch.ones(16, 16) for _ in tower.dims))
        assert not weight[own == 0].any()


@pytest.mark.parametrize("tower_module", ["dlrm", "dcn"])
@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
def test_towers_of_a_narrow_over_arch_start_by_xavier(kind, tower_module):
    model = towers_of(kind, tower_module, compression=4, over_arch_width="towers")
    assert isinstance(model.expand, nn.Identity)
    maps = [p for name, p in model.named_parameters() if "tower_modules" in name and p.dim() == 2]
    assert len(maps) == (3 if tower_module == "dlrm" else 3 * 2)
    for weight in maps:
        assert weight.abs().max() <= math.sqrt(6 / sum(weight.shape)) and (weight == 0).float().mean() < 0.01


@pytest.mark.parametrize("columns", [[(1, 1), (2,)], [(1, 2), (1, 1)], [(3,), (2,)]])
@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
def test_a_map_undoes_the_columns_that_arrive(kind, columns):
    exchange = FixedExchange(torch.zeros(0, 5), [3, 2])
    exchange.tower_dims = [(2, 4), (4,)]
    with pytest.raises(InputError, match="are not those of features"):
        expanded(kind, exchange, columns=columns)


@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
def test_pass_through_towers_are_the_flat_model(kind):
    flat = model_of(kind, PlainExchange([PassThrough((DIM,) * FEATURES)]))
    towers = model_of(kind, PlainExchange([PassThrough((DIM,) * n) for n in (2, 1, 2)]))
    dense, sparse = torch.randn(8, DENSE), one_id_per_bag(8)
    for model in (flat, towers):
        model(dense, sparse).square().sum().backward()
    assert torch.equal(flat(dense, sparse), towers(dense, sparse))
    one, other = dict(flat.named_parameters()), dict(towers.named_parameters())
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) and torch.equal(one[name].grad, other[name].grad) for name in one)


@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
@pytest.mark.parametrize("tower_module", ["dlrm", "dcn"])
def test_towers_of_every_kind_learn(kind, tower_module):
    tower_dims = [(DIM,) * 3, (DIM,) * 2]
    out_dim = common_out_dim(tower_module, tower_dims, 2) if kind == "dlrm" else None
    towers = [
        build_tower_module(tower_module, dims, compression=2, out_dim=out_dim, name=f"tower{t}")
        for t, dims in enumerate(tower_dims)
    ]
    model = model_of(kind, PlainExchange(towers), out_dim=out_dim)
    dense, sparse = torch.randn(64, DENSE), one_id_per_bag(64)
    label = (sparse.ids[:64] % 2).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = nn.functional.binary_cross_entropy_with_logits(model(dense, sparse), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]
    assert all(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
def test_values_depend_on_seed_and_name_alone(kind):
    def dense_parameters(seed):
        torch.randn(3)
        model = model_of(kind, FixedExchange(None, [8, 4]), seed=seed)
        return dict(model.named_parameters())

    first, again, other = dense_parameters(5), dense_parameters(5), dense_parameters(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].any())


@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
def test_the_exchange_keeps_its_values(kind):
    exchange = PlainExchange([PassThrough((DIM,) * FEATURES)])
    before = exchange.tables.detach().clone()
    model_of(kind, exchange)
    assert torch.equal(before, exchange.tables)


@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
@pytest.mark.parametrize("dense_width", [0, DENSE])
def test_gradcheck_in_float64(kind, dense_width):
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    dense = torch.randn(2, dense_width, dtype=torch.float64)
    model = model_of(kind, FixedExchange(x, [4, 2]), out_dim=2, dense_width=dense_width).double()
    assert torch.autograd.gradcheck(lambda x: model(dense, None), (x,))


@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
def test_no_sample_gives_no_logit(kind):
    model = model_of(kind, FixedExchange(torch.empty(0, 8), [8]))
    assert model(torch.empty(0, DENSE), None).shape == (0,)


def test_dlrm_refuses_a_width_that_is_no_multiple():
    with pytest.raises(InputError, match="tower 1 gives 6 columns, which is not a multiple of the DLRM's dim 4"):
        DLRM(FixedExchange(None, [8, 6]), DENSE, 4)


def test_dlrm_refuses_a_single_feature():
    with pytest.raises(InputError, match="at least two features"):
        DLRM(FixedExchange(None, [4]), 0, 4)
