"""The CUDA kernels of tower_pool agree with the CPU's, thread by thread."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cuda.places import places, simt
from tests.cuda.test_embedding_bag import arguments
from tests.ops.bags import bags, random_bags

pytestmark = places
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PRODUCTS = [None, torch.bfloat16]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_close(actual, expected, products):
    """To a rounding of the result, and of sums in another order of about as large as it."""
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    # A pooled value that lies between two bfloat16 is rounded alike on both sides, so products are exact in both modes.
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=False)


def check(op, case, out_width, products, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dtype = case.tables[0].dtype
    weight = torch.randn(out_width, case.width, generator=generator).to(dtype)
    bias = torch.randn(out_width, generator=generator).to(dtype) if bias else None
    tables, ids, offsets, *layout = arguments(case)
    given = (tables, ids, offsets, weight, bias, *layout, False, products)
    expected = torch.ops.dmt.tower_pool(*given)
    assert_close(op("tower_pool")(*given), expected, products)

    grad = torch.randn(expected.shape, generator=generator)
    given = (grad, tables, ids, offsets, *layout[:-1], products)
    expected = torch.ops.dmt.tower_pool_weight_backward(*given)
    assert_close(op("tower_pool_weight_backward")(*given), expected, products)

    expected = torch.ops.dmt.tower_pool_pooled_backward(grad, weight, products)
    assert_close(op("tower_pool_pooled_backward")(grad, weight, products), expected, products)


@settings(max_examples=40, deadline=None)
@given(bags(dtypes=DTYPES), st.sampled_from([0, 1, 5, 70]), st.sampled_from(PRODUCTS), st.booleans())
def test_any_bags(op, case, out_width, products, bias):
    check(op, case, out_width, products, bias)


@pytest.mark.parametrize("products", PRODUCTS, ids=["f32", "bf16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("dims", "out_width", "samples"),
    [((128, 128), 64, 70), ((16,) * 9, 130, 64), ((200, 5, 64), 256, 33), ((8, 40), 300, 130)],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_tiles(op, dtype, products, dims, out_width, samples):
    """Slices that cut features and features that share a slice; more columns and samples than a tile has."""
    case = random_bags(
        dims=dims, rows=(30,) * len(dims), blocks=2, samples=samples, longest=3, dtype=dtype, pooling="mean",
        missing=True, block_order=[1, 0], weighted=True,
    )  # fmt: skip
    check(op, case, out_width, products)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ring", [0, 1], ids=["", "by_ring"])
@pytest.mark.parametrize(
    ("dims", "out_width", "samples", "options"),
    [
        ((128, 256, 64, 64), (300, 250), 400, {}),
        ((64, 24, 8, 40, 3), (130, 130), 130, {"pooling": "mean"}),
        ((128, 72), (64, 64), 1000, {"weighted": True}),
    ],
    ids=["slices", "features", "weights"],
)
def test_many_samples(op, monkeypatch, dtype, ring, dims, out_width, samples, options):
    """Tiles of the kernels for many samples: bags of one id, whose rows are copied, beside others."""
    monkeypatch.setenv("DMT_TOWER_POOL_RING", str(ring))
    case = random_bags(
        dims=dims, rows=(50,) * len(dims), blocks=2, samples=samples, longest=3, dtype=dtype, missing=True,
        id_dtype=torch.int32 if dtype == torch.float16 else torch.int64, block_order=[1, 0], **options,
    )  # fmt: skip
    lengths = torch.ones(len(case.offsets) - 1, dtype=torch.int64)
    for first in range(0, samples, 100):  # of all features: here none, one and three
        lengths.view(-1, samples)[:, first : first + 50] = torch.tensor([0, 3, 0, 1, 1]).repeat(10)[: samples - first]
    case.offsets[1:] = lengths.cumsum(0)
    tables, ids, offsets, weights, *layout = arguments(case)
    count = int(offsets[-1])
    assert count == len(lengths) <= len(ids)
    weight = torch.randn(out_width[ring], case.width).to(dtype)  # the ring makes 256 columns at most
    weights = None if weights is None else weights[:count]
    given = (tables, ids[:count], offsets, weight, None, weights, *layout, False, torch.bfloat16)
    assert_close(op("tower_pool")(*given), torch.ops.dmt.tower_pool(*given), torch.bfloat16)


@pytest.mark.parametrize("odd", ["nothing", "dim", "stride", "start"])
def test_who_multiplies(op, odd):
    """Rows that copies of 16 bytes cannot bring to their place are left to torch's product."""
    if op is not simt:
        pytest.skip("a GPU gets copies of tables, whose strides and starts are others")
    first, dim, stride = int(odd == "start"), 15 if odd == "dim" else 16, 25 if odd == "stride" else 24
    tables = [torch.randn(30, stride).bfloat16()[:, first : first + dim], torch.randn(30, 8).bfloat16()]
    samples = 4096
    ids, offsets = torch.randint(30, (2 * samples,)), torch.arange(2 * samples + 1)
    given = (tables, ids, offsets, torch.randn(16, dim + 8).bfloat16(), None, *[None] * 5, 2, False, torch.bfloat16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = op("tower_pool")(*given)
    assert any(event.key == "aten::mm" for event in profile.key_averages()) == (odd != "nothing")
    assert_close(out, torch.ops.dmt.tower_pool(*given), torch.bfloat16)


@pytest.mark.parametrize("stride", [1, 16])
def test_a_feature_of_no_columns_among_bags_of_one_id(op, stride):
    """Its rows are nowhere, and of its longer bags nothing is read."""
    tables = [torch.randn(30, columns).bfloat16() for columns in (16, stride, 8)]
    tables[1] = tables[1][:, :0] if stride > 1 else torch.empty(30, 0).bfloat16()
    samples = 4096
    lengths = torch.ones(3 * samples).long()
    lengths[samples + 40 : samples + 42] = torch.tensor([2, 0])
    ids, offsets = torch.randint(30, (3 * samples,)), torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    given = (tables, ids, offsets, torch.randn(16, 24).bfloat16(), None, *[None] * 5, 2, False, torch.bfloat16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = op("tower_pool")(*given)
    assert op is not simt or not any(event.key == "aten::mm" for event in profile.key_averages())
    assert_close(out, torch.ops.dmt.tower_pool(*given), torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "mean"},
        {"weighted": True},
        {"id_dtype": torch.int32},
        {"shard": True},
        {"pooling": "mean", "shard": True},  # rows of other shards count, ids out of range do not
        {"slack": 3},
    ],
    ids=["sum", "mean", "weighted", "int32", "shard", "mean of a shard", "slack"],
)
def test_long_bags_by_ring(op, monkeypatch, dtype, options):
    """Empty bags, and some of more ids than a ring of rows has room for; packs that begin anywhere in a tile."""
    monkeypatch.setenv("DMT_TOWER_POOL_RING", "1")
    case = random_bags(
        dims=(128, 40, 64, 5, 32), rows=(60,) * 5, blocks=2, samples=300, longest=40, dtype=dtype, missing=True,
        block_order=[1, 0], **options,
    )  # fmt: skip
    tables, ids, offsets, *layout = arguments(case)
    weight, bias = torch.randn(201, case.width).to(dtype), torch.randn(201).to(dtype)
    given = (tables, ids, offsets, weight, bias, *layout, False, torch.bfloat16)
    assert_close(op("tower_pool")(*given), torch.ops.dmt.tower_pool(*given), torch.bfloat16)


def test_weight_with_strides(op):
    """The gradient's product reads a slice of the weight's columns where it lies."""
    weight = torch.randn(9, 50)[:, 3:20]
    grad = torch.randn(5, 9)
    expected = torch.ops.dmt.tower_pool_pooled_backward(grad, weight)
    assert_close(op("tower_pool_pooled_backward")(grad, weight), expected, None)


def records_ids_out_of_range(op, samples, out_width, products):
    take = op("take_missing_ids")
    case = random_bags(dims=(200, 150), samples=samples)  # a feature in several slices
    case.ids[case.offsets[0]] = -5
    take(case.ids)
    weight = torch.randn(out_width, case.width)
    tables, ids, offsets, *layout, _ = arguments(case)
    op("tower_pool")(tables, ids, offsets, weight, None, *layout, 0, False, products)
    assert take(case.ids)[:4].tolist() == [1, -5, 0, 0]


def test_ids_out_of_range_are_recorded(op):
    records_ids_out_of_range(op, 5, 300, None)  # several chunks


def test_ids_out_of_range_are_recorded_by_ring(op, monkeypatch):
    monkeypatch.setenv("DMT_TOWER_POOL_RING", "1")
    records_ids_out_of_range(op, 70, 30, torch.bfloat16)


def tf32(x):
    """The nearest float with 10 bits of mantissa, ties away from zero."""
    return ((x.float().contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dims", "out_width"), [((128, 128), 64), ((16, 40, 3), 300)], ids=str)
def test_tf32_products(op, dtype, dims, out_width):
    """Exact products of rounded factors, and further than that from those of whole ones."""
    case = random_bags(dims=dims, rows=(30,) * len(dims), samples=70, longest=3, dtype=dtype)
    tables, ids, offsets, *layout = arguments(case)
    pooled = torch.ops.dmt.embedding_bag([t.float() for t in tables], ids, offsets, *layout[:-1])
    weight, grad = torch.randn(out_width, case.width).to(dtype), torch.randn(70, out_width)
    given = (tables, ids, offsets)
    found = {
        "out": op("tower_pool")(*given, weight, None, *layout, False, None, True),
        "weight": op("tower_pool_weight_backward")(grad, *given, *layout[:-1], None, True),
        "pooled": op("tower_pool_pooled_backward")(grad, weight, None, True),
    }
    factors = {"out": (pooled, weight.t()), "weight": (grad.t(), pooled), "pooled": (grad, weight)}
    for name, (a, b) in factors.items():
        expected = (tf32(a) @ tf32(b)).to(found[name].dtype)
        assert_close(found[name], expected, None)
    assert not torch.allclose(found["pooled"], grad @ weight.float(), rtol=1e-5, atol=1e-5 * out_width**0.5)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_many_rows(op, dtype, bias):
    """More ids than bags: torch multiplies."""
    case = random_bags(dims=(8, 5), rows=(30, 30), blocks=1, samples=4100, longest=4, dtype=dtype, missing=True)
    check(op, case, 7, torch.bfloat16, bias)
