"""tower_pool against the two steps it fuses, forward and backward."""

import math
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_kernels.ops import embedding_bag, tower_pool
from dmt_kernels.ops.kept_rows import rounded_product
from dmt_kernels.ops.reference.tower_pool import tower_pool as oracle
from tests.devices import on_cuda, on_devices, there
from tests.ops.bags import DTYPES, bags, random_bags
from tests.tolerances import TOLERANCES, assert_close

MODULE = sys.modules["dmt_kernels.ops.tower_pool"]  # the name is the function's
WIDE = tuple(dtype for dtype in DTYPES if dtype.itemsize >= 4)


def linear(batch, out_width, bias=True, seed=3):
    """Weight [C, D] and bias [C], leaves."""
    generator = torch.Generator().manual_seed(seed)
    dtype = batch.tables[0].dtype
    weight = torch.randn(out_width, batch.width, generator=generator, dtype=torch.float64) / max(1, batch.width) ** 0.5
    offset = torch.randn(out_width, generator=generator, dtype=torch.float64)
    return weight.to(dtype).requires_grad_(), offset.to(dtype).requires_grad_() if bias else None


def assert_products_close(actual, expected):
    """Two orders of summation: the sums may cancel, and then a short dtype's last place is that of the terms."""
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=2 * tolerance["rtol"], atol=2e-5)


@on_devices
@settings(max_examples=120, deadline=None)
@given(bags(), st.sampled_from([0, 1, 5, 16, 33, 70]), st.booleans())
def test_forward_equals_oracle(batch, out_width, bias):
    weight, offset = linear(batch, out_width, bias)
    actual = tower_pool(*batch.args, weight, offset, **batch.options)
    assert_products_close(actual, oracle(*batch.args, weight, offset, **batch.options))


@on_devices
@settings(max_examples=60, deadline=None)
@given(bags(DTYPES[1:]), st.sampled_from([0, 1, 7, 16, 33]))
def test_bfloat16_products_equal_oracle(batch, out_width):
    """The factors are rounded, the sums are not."""
    weight, offset = linear(batch, out_width)
    options = {**batch.options, "product_dtype": torch.bfloat16}
    actual = tower_pool(*batch.args, weight, offset, **options)
    expected = oracle(*batch.args, weight, offset, **options)
    # A pooled sum in the other order may round to the neighbour in bfloat16.
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=2**-7)


@on_devices
@pytest.mark.parametrize("width", [1, 127, 128, 129, 255, 256, 257, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rounded", [False, True], ids=["plain", "bfloat16 products"])
def test_widths_around_a_slice(width, dtype, rounded):
    """One id per bag: nothing but the product is summed, so rounded factors are the same on both sides."""
    if rounded and dtype == torch.float64:
        return
    batch = random_bags(dims=(width, 5), rows=(9, 4), samples=70, dtype=dtype)
    ids = torch.randint(4, (2 * 70,), generator=torch.Generator().manual_seed(0))
    args = (batch.tables, ids, torch.arange(2 * 70 + 1))
    weight, offset = linear(batch, 30)
    options = {"product_dtype": torch.bfloat16} if rounded else {}
    assert_products_close(tower_pool(*args, weight, offset, **options), oracle(*args, weight, offset, **options))


@on_devices
def test_gradients_with_bfloat16_products():
    batch = random_bags(samples=80, dims=(24, 40), weighted=True).leaves()
    weight, offset = linear(batch, 20)
    wanted = [*batch.differentiable(), weight, offset]
    plain = tower_pool(*batch.args, weight, offset, **batch.options)
    rounded = tower_pool(*batch.args, weight, offset, **batch.options, product_dtype=torch.bfloat16)
    grad = torch.randn_like(plain)
    for exact, actual in zip(
        torch.autograd.grad(plain, wanted, grad), torch.autograd.grad(rounded, wanted, grad), strict=True
    ):
        assert (actual - exact).norm() <= 2**-7 * exact.norm()


@on_devices
@settings(max_examples=40, deadline=None)
@given(bags(WIDE), st.sampled_from([1, 5, 33]), st.booleans())
def test_gradients_equal_oracle(batch, out_width, bias):
    results = []
    for op in (tower_pool, oracle):
        leaves = batch.leaves()
        weight, offset = linear(batch, out_width, bias)
        out = op(*leaves.args, weight, offset, **leaves.options)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        wanted = [*leaves.differentiable(), weight, *([offset] if bias else [])]
        grads = torch.autograd.grad(out, wanted, grad, allow_unused=True)
        results.append([torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True)])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@on_devices
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_short_dtypes_are_rounded_once(dtype):
    """Forward and gradients equal those of float32 copies, rounded."""
    batch = random_bags(samples=80, dims=(24, 40), weighted=True, pooling="mean", dtype=dtype)
    weight, offset = linear(batch, 20)
    leaves = batch.leaves()
    out = tower_pool(*leaves.args, weight, offset, **leaves.options)
    grad = torch.randn_like(out)
    wanted = [*leaves.differentiable(), weight, offset]
    twin = batch.leaves()
    wide = [t.detach().float().requires_grad_() for t in twin.tables]
    factors = twin.options["per_sample_weights"]
    w, b = weight.detach().float().requires_grad_(), offset.detach().float().requires_grad_()
    expected = embedding_bag(wide, *twin.args[1:], **twin.options) @ w.t() + b
    assert_products_close(out, expected.to(dtype))
    for actual, right in zip(
        torch.autograd.grad(out, wanted, grad),
        torch.autograd.grad(expected, [*wide, factors, w, b], grad.float()),
        strict=True,
    ):
        assert_products_close(actual, right.to(actual.dtype))


def _gradients(batch, out_width, bias):
    """Of bfloat16 products: the output, and what all differentiable arguments get."""
    leaves = batch.leaves()
    weight, offset = linear(batch, out_width, bias)
    out = tower_pool(*leaves.args, weight, offset, **leaves.options, product_dtype=torch.bfloat16)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    wanted = [*leaves.differentiable(), weight, *([offset] if bias else [])]
    return [out, *torch.autograd.grad(out, wanted, grad, allow_unused=True)]


@pytest.fixture
def keeping(monkeypatch):
    """The CPU keeps rows, as GPUs do where there are many: and the products that it makes of them."""
    products = Mock(side_effect=rounded_product)
    monkeypatch.setattr(MODULE, "_keeps", lambda *_: True)
    monkeypatch.setattr(MODULE, "rounded_product", products)
    return products


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_kept_rows_give_the_same(dtype, bias, keeping, monkeypatch):
    batch = random_bags(
        samples=33, dims=(24, 40), features=[1, 0, 1], weighted=True, pooling=["mean", "sum", "sum"], dtype=dtype
    )
    kept = _gradients(batch, 20, bias)
    assert [len(call.args[0]) for call in keeping.call_args_list] == [33, 20]  # forward, the weight's gradient
    assert {factor.dtype for call in keeping.call_args_list for factor in call.args[:2]} == {torch.bfloat16}
    monkeypatch.setattr(MODULE, "_keeps", lambda *_: False)
    for actual, expected in zip(kept, _gradients(batch, 20, bias), strict=True):
        # A pooled sum in another order may round to the neighbour in bfloat16.
        torch.testing.assert_close(actual, expected, rtol=2**-6, atol=2**-6 * float(expected.detach().abs().max()))


def test_kept_rows_have_no_need_of_tables(keeping):
    batch = random_bags().leaves()
    weight, offset = linear(batch, 3)
    out = tower_pool(*batch.args, weight, offset, product_dtype=torch.bfloat16)
    with torch.no_grad():
        batch.tables[0].zero_()
    out.sum().backward()
    assert keeping.call_count == 2


def test_kept_rows_are_differentiated_once(keeping):
    batch = random_bags().leaves()
    weight, offset = linear(batch, 3)
    out = tower_pool(*batch.args, weight, offset, product_dtype=torch.bfloat16)
    (grad,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    assert keeping.call_count == 2
    with pytest.raises(RuntimeError, match="tower_pool can be differentiated only once"):
        grad.square().sum().backward()


def _meant_for_a_gpu(**changed):
    """What `_keeps` looks at, as if it were on a GPU."""
    given = {"dtype": torch.float32, "shape": (3, 8), "requires_grad": True, "is_cuda": True, **changed}
    shape, dtype = given["shape"], given["dtype"]
    weight = SimpleNamespace(
        **given, numel=lambda: math.prod(shape), size=lambda axis: shape[axis], dim=lambda: len(shape)
    )
    return [torch.empty(5, 8, dtype=dtype)], torch.arange(4096 + 1), weight, None, None, torch.bfloat16


def test_rows_are_kept_by_gpus_that_train():
    assert MODULE._keeps(*_meant_for_a_gpu())
    with torch.no_grad():
        assert not MODULE._keeps(*_meant_for_a_gpu())
    assert not MODULE._keeps(*_meant_for_a_gpu(requires_grad=False))
    assert not MODULE._keeps(*_meant_for_a_gpu(is_cuda=False))
    assert not torch.func.vmap(lambda x: x * MODULE._keeps(*_meant_for_a_gpu()))(torch.ones(2)).any()
    tables, offsets, weight, *rest = _meant_for_a_gpu()
    assert not MODULE._keeps(tables, offsets[:-1], weight, *rest)
    for products in (None, "tf32"):
        assert not MODULE._keeps(tables, offsets, weight, *rest[:-1], products)


def test_what_does_not_fit_is_left_to_the_op():
    for wrong in ({"shape": (3, 7)}, {"shape": (8,)}, {"shape": (0, 8)}, {"dtype": torch.float64}):
        assert not MODULE._keeps(*_meant_for_a_gpu(**wrong)), wrong
    tables, offsets, weight, *rest = _meant_for_a_gpu()
    assert not MODULE._keeps([tables[0].half()], offsets, weight, *rest)
    for bias in (torch.ones(4), torch.ones(4, 3), torch.ones(3).half()):
        assert not MODULE._keeps(tables, offsets, weight, bias, *rest[1:])
    assert MODULE._keeps(tables, offsets, weight, torch.ones(3), *rest[1:])
    for features in ([1], [-1]):
        assert not MODULE._keeps(tables, offsets, weight, None, features, torch.bfloat16)
    assert not MODULE._keeps([tables[0][0]], offsets, weight, *rest)
    assert not MODULE._keeps(tables, offsets[0], weight, *rest)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_cuda)])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_kept_rows_on_a_gpu(device, dtype, bias, monkeypatch):
    batch = random_bags(samples=4096, dims=(24, 40), weighted=True, dtype=dtype)
    expected = _gradients(batch, 32, bias)
    products = Mock(side_effect=rounded_product)
    monkeypatch.setattr(MODULE, "rounded_product", products)
    monkeypatch.setattr(sys.modules[__name__], "tower_pool", there(tower_pool, device))
    for actual, right in zip(_gradients(batch, 32, bias), expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=2**-6, atol=2**-6 * float(right.detach().abs().max()))
    assert products.call_count == 2


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_sparse_gradients(sparse):
    batch = random_bags(features=[1, 0, 1], samples=20, pooling="mean").leaves()
    weight, offset = linear(batch, 6)
    tower_pool(*batch.args, weight, offset, **batch.options, sparse=sparse).square().sum().backward()
    twin = random_bags(features=[1, 0, 1], samples=20, pooling="mean").leaves()
    oracle(*twin.args, weight, offset, **twin.options).square().sum().backward()
    for table, right in zip(batch.tables, twin.tables, strict=True):
        assert table.grad.is_sparse == sparse
        assert_close(table.grad.to_dense(), right.grad)


def test_gradcheck():
    batch = random_bags(
        dtype=torch.float64, weighted=True, features=[1, 0], blocks=2, block_order=[1, 0], pooling=["mean", "sum"]
    ).leaves()
    weights = batch.options.pop("per_sample_weights")
    weight, offset = linear(batch, 3)

    def run(weights, weight, offset, *tables):
        return tower_pool(tables, *batch.args[1:], weight, offset, per_sample_weights=weights, **batch.options).square()

    assert torch.autograd.gradcheck(run, (weights, weight, offset, *batch.tables))


@pytest.mark.parametrize("frozen", ["tables", "weight", "bias"])
def test_frozen_inputs_get_no_gradient(frozen):
    batch = random_bags().leaves()
    weight, offset = linear(batch, 3)
    groups = {"tables": batch.tables, "weight": [weight], "bias": [offset]}
    for tensor in groups[frozen]:
        tensor.requires_grad_(False)
    tower_pool(*batch.args, weight, offset).sum().backward()
    for name, tensors in groups.items():
        assert all((tensor.grad is None) == (name == frozen) for tensor in tensors)


def test_update_in_place_before_the_backward():
    batch = random_bags().leaves()
    weight, offset = linear(batch, 3)
    for needs_rows in (False, True):
        out = tower_pool(*batch.args, weight if needs_rows else weight.detach(), offset)
        with torch.no_grad():
            batch.tables[0].zero_()
        if needs_rows:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                out.sum().backward()
        else:
            out.sum().backward()


def test_direct_call_equals_wrapper():
    batch = random_bags(weighted=True, features=[1, 0, 1]).leaves()
    weight, offset = linear(batch, 3)
    weights = batch.options["per_sample_weights"]
    direct = torch.ops.dmt.tower_pool(*batch.args, weight, offset, weights, [1, 0, 1])
    wrapped = tower_pool(*batch.args, weight, offset, **batch.options)
    assert torch.equal(direct, wrapped)
    leaves, grad = [*batch.differentiable(), weight, offset], torch.randn_like(wrapped)
    for a, b in zip(*(torch.autograd.grad(out, leaves, grad) for out in (direct, wrapped)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("product_dtype", [None, torch.bfloat16], ids=str)
def test_threads_change_no_bit(product_dtype):
    batch = random_bags(
        dims=(33, 7), rows=(50, 300), features=[0, 1, 1], blocks=2, samples=301, weighted=True, block_order=[1, 0]
    )
    weight, offset = linear(batch, 45)
    options = {**batch.options, "product_dtype": product_dtype}
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(tower_pool(*batch.args, weight, offset, **options))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_rows_do_not_depend_on_their_neighbours():
    """A sample gives the same bits alone and inside any tile."""
    batch = random_bags(dims=(19,), rows=(11,), samples=71)
    weight, offset = linear(batch, 21)
    together = tower_pool(*batch.args, weight, offset)
    for sample in (0, 31, 32, 63, 66, 70):
        alone = tower_pool(batch.tables, batch.ids, batch.offsets[sample : sample + 2], weight, offset)
        assert torch.equal(alone[0], together[sample])


def test_opcheck():
    batch = random_bags(weighted=True, features=[1, 0, 1]).leaves()
    weight, offset = linear(batch, 3)
    weights = batch.options["per_sample_weights"]
    torch.library.opcheck(torch.ops.dmt.tower_pool, (*batch.args, weight, offset, weights, [1, 0, 1], [0, 1, 0]))
    torch.library.opcheck(
        torch.ops.dmt.tower_pool, (batch.tables, *batch.args[1:], weight), {"feature_tables": [1, 0, 1]}
    )
    rounded = {"feature_tables": [1, 0, 1], "product_dtype": torch.bfloat16}
    torch.library.opcheck(torch.ops.dmt.tower_pool, (batch.tables, *batch.args[1:], weight), rounded)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.ones(3, 7), None, "weight must be [C, 8], as wide as the features' dims together, got [3, 7]"),
        (torch.ones(8), None, "weight must have 2 dimensions, got shape [8]"),
        (torch.ones(3, 8).double(), None, "weight must be float32 as the tables are, got float64"),
        (torch.ones(3, 8), torch.ones(4), "bias must be [3], got [4]"),
        (torch.ones(3, 8), torch.ones(3).half(), "bias must be float32 as the tables are, got float16"),
    ],
    ids=["width", "dim", "dtype", "bias width", "bias dtype"],
)
def test_bad_arguments(weight, bias, message):
    with pytest.raises(RuntimeError) as error:
        tower_pool(*random_bags().args, weight, bias)
    assert str(error.value) == f"tower_pool: {message}"


@pytest.mark.parametrize(
    ("dtype", "product_dtype", "message"),
    [
        (torch.float64, torch.bfloat16, "product_dtype for float64 tables must be float64, got bfloat16"),
        (torch.float16, torch.float16, "product_dtype for float16 tables must be float32 or bfloat16, got float16"),
    ],
    ids=["float64", "float16"],
)
def test_bad_product_dtype(dtype, product_dtype, message):
    with pytest.raises(RuntimeError) as error:
        tower_pool(*random_bags(dtype=dtype).args, torch.ones(3, 8, dtype=dtype), product_dtype=product_dtype)
    assert str(error.value) == f"tower_pool: {message}"


def test_bounds():
    batch = random_bags(samples=40, missing=True)
    weight, offset = linear(batch, 3)
    with pytest.raises(
        RuntimeError, match=r"^tower_pool: id -?\d+ of table 0, feature 0, sample \d+, position \d is outside"
    ):
        tower_pool(*batch.args, weight, offset)
    with pytest.warns(UserWarning, match="ids are out of range and count as missing"):
        out = tower_pool(*batch.args, weight, offset, bounds="warn")
    assert_products_close(out, oracle(*batch.args, weight, offset, bounds="none"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_tf32_rounds_nothing_on_a_cpu(dtype):
    results = []
    for product_dtype in (None, "tf32"):
        batch = random_bags(dtype=dtype)
        weight = torch.ones(3, 8, dtype=dtype).requires_grad_()
        out = tower_pool(*batch.args, weight, **batch.options, product_dtype=product_dtype)
        out.square().sum().backward()
        results.append((out.detach(), weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
