"""embedding_bag against torch.nn.functional.embedding_bag and the oracle, forward and backward."""

import concurrent.futures

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings

from dmt_kernels.ops import embedding_bag
from dmt_kernels.ops.reference.embedding_bag import embedding_bag as oracle
from tests.devices import on_devices
from tests.ops.bags import DTYPES, Bags, bags, random_bags
from tests.tolerances import assert_close

WIDE = tuple(dtype for dtype in DTYPES if dtype.itemsize >= 4)  # autograd of the oracle rounds too often in the others


def gradients(op, batch, grad, **options):
    leaves = batch.leaves()
    out = op(*leaves.args, **leaves.options, **options)
    wanted = leaves.differentiable()
    grads = torch.autograd.grad(out, wanted, grad.to(out.dtype), allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(wanted, grads, strict=True)]


@on_devices
@settings(max_examples=150, deadline=None)
@given(bags())
def test_forward_equals_oracle(batch):
    assert_close(embedding_bag(*batch.args, **batch.options), oracle(*batch.args, **batch.options))


@on_devices
@settings(max_examples=60, deadline=None)
@given(bags(WIDE))
def test_gradients_equal_oracle(batch):
    out = oracle(*batch.args, **batch.options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    expected = gradients(oracle, batch, grad) if out.numel() else [torch.zeros_like(x) for x in batch.differentiable()]
    for sparse in (False, True):
        for actual, right in zip(gradients(embedding_bag, batch, grad, sparse=sparse), expected, strict=True):
            assert_close(actual.to_dense(), right)


@on_devices
@settings(max_examples=80, deadline=None)
@given(bags(WIDE, whole=True))
def test_equals_torch(batch):
    """Feature by feature; torch knows weights with sum only."""
    leaves, twin = batch.leaves(), batch.leaves()
    samples = (len(batch.offsets) - 1) // max(1, len(batch.features))
    weights = twin.options.get("per_sample_weights")
    pooling = batch.options["pooling"]
    pieces = []
    for feature, table in enumerate(batch.features):
        here = slice(int(batch.offsets[feature * samples]), int(batch.offsets[(feature + 1) * samples]))
        mode = pooling if isinstance(pooling, str) else pooling[feature]
        offsets = batch.offsets[feature * samples : (feature + 1) * samples + 1] - here.start
        factors = None if weights is None else weights[here]
        if factors is not None and mode == "mean":
            factors = factors / offsets.diff().clamp(min=1).repeat_interleave(offsets.diff())
            mode = "sum"
        pieces.append(
            functional.embedding_bag(
                batch.ids[here].long(), twin.tables[table], offsets,
                mode=mode, per_sample_weights=factors, include_last_offset=True,
            )
        )  # fmt: skip
    if not pieces or not samples:
        return
    expected = torch.cat(pieces, 1)
    actual = embedding_bag(*leaves.args, **leaves.options)
    assert_close(actual, expected)
    grad = torch.randn_like(expected)
    wanted, right = leaves.differentiable(), twin.differentiable()
    for a, e, leaf in zip(
        torch.autograd.grad(actual, wanted, grad, allow_unused=True),
        torch.autograd.grad(expected, right, grad, allow_unused=True),
        wanted,
        strict=True,
    ):
        assert_close(a, torch.zeros_like(leaf) if e is None else e)


@on_devices
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_gradients_of_short_dtypes_are_rounded_once(dtype):
    """A row that many bags read: a sum kept in the table's own dtype would be far off."""
    batch = random_bags(dims=(5,), rows=(3,), samples=400, weighted=True, pooling="mean", dtype=dtype)
    long = Bags([t.float() for t in batch.tables], batch.ids, batch.offsets, batch.options)
    grad = torch.randn(400, 5).to(dtype)
    for actual, expected in zip(gradients(embedding_bag, batch, grad), gradients(oracle, long, grad), strict=True):
        assert_close(actual, expected.to(actual.dtype))


@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"pooling": ["mean", "sum"], "shard": True}], ids=str)
def test_gradcheck(options):
    batch = random_bags(dtype=torch.float64, weighted=True, features=[1, 0], blocks=2, block_order=[1, 0], **options)
    leaves = batch.leaves()
    weights = leaves.options.pop("per_sample_weights")

    def run(weights, *tables):
        return embedding_bag(tables, *leaves.args[1:], per_sample_weights=weights, **leaves.options).square()

    assert torch.autograd.gradcheck(run, (weights, *leaves.tables))


@on_devices
def test_sparse_gradients_feed_an_optimizer():
    batch = random_bags(features=[0, 1, 0], samples=20).leaves()
    embedding_bag(*batch.args, **batch.options, sparse=True).square().sum().backward()
    assert all(table.grad.is_sparse and not table.grad.is_coalesced() for table in batch.tables)
    expected = [(table - 0.5 * table.grad.to_dense()).detach() for table in batch.tables]
    torch.optim.SGD(batch.tables, lr=0.5).step()
    for table, right in zip(batch.tables, expected, strict=True):
        assert_close(table.detach(), right)


@on_devices
@pytest.mark.parametrize("out_dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_out_dtype(dtype, out_dtype):
    batch = random_bags(dtype=dtype, samples=50, weighted=True)
    out = embedding_bag(*batch.args, **batch.options, out_dtype=out_dtype)
    assert out.dtype == out_dtype
    assert_close(out, oracle(*batch.args, **batch.options, out_dtype=out_dtype))


@on_devices
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_every_short_float_converts_exactly(dtype):
    """One id per bag: the op is a copy, or a conversion, and both must equal torch's own for all 65536 values."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[:, None]
    ids, offsets = torch.arange(2**16), torch.arange(2**16 + 1)
    wide = embedding_bag([values], ids, offsets, out_dtype=torch.float32)
    torch.testing.assert_close(wide, values.float() + 0, rtol=0, atol=0, equal_nan=True)  # a sum has no -0
    back = embedding_bag([values], ids, offsets)
    torch.testing.assert_close(back, values + 0, rtol=0, atol=0, equal_nan=True)


@on_devices
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_rounding_is_to_nearest_even(dtype):
    bits = torch.randint(-(2**31), 2**31, (100_000,), generator=torch.Generator().manual_seed(0))
    values = bits.to(torch.int32).view(torch.float32)
    ties = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    ties = torch.cat([ties, torch.nextafter(ties, ties + 1), (ties[:-1] + ties[1:]) / 2])
    values = torch.cat([values, ties[ties.isfinite()]])[:, None]
    count = len(values)
    out = embedding_bag([values], torch.arange(count), torch.arange(count + 1), out_dtype=dtype)
    torch.testing.assert_close(out, (values + 0).to(dtype), rtol=0, atol=0, equal_nan=True)


@on_devices
def test_strided_arguments():
    batch = random_bags(dims=(8, 6), weighted=True)
    left = [t[:, :3] for t in batch.tables]  # column shards of the tables, in place
    expected = oracle([t.contiguous() for t in left], batch.ids, batch.offsets, **batch.options)
    assert_close(embedding_bag(left, batch.ids, batch.offsets, **batch.options), expected)
    spread = {**batch.options, "per_sample_weights": batch.options["per_sample_weights"].repeat_interleave(2)[::2]}
    ids, offsets = batch.ids.repeat_interleave(2)[::2], batch.offsets.repeat_interleave(3)[::3]
    assert not ids.is_contiguous()
    assert torch.equal(
        embedding_bag(left, ids, offsets, **spread), embedding_bag(left, *batch.args[1:], **batch.options)
    )


def test_tables_beyond_32_bit_addresses(tmp_path):
    rows, dim = 2**21 + 1, 1030  # the last row starts beyond 2**31 elements; the file is sparse
    data = np.memmap(tmp_path / "table", dtype=np.float16, mode="w+", shape=(rows, dim))
    data[rows - 1] = 3
    table = torch.from_numpy(data)
    out = embedding_bag([table], torch.tensor([rows - 1, 0, rows - 1]), torch.tensor([0, 3]))
    assert torch.equal(out, torch.full((1, dim), 6, dtype=torch.float16))


@on_devices
def test_rows_wider_than_a_tile_of_columns():
    batch = random_bags(dims=(2500,), rows=(4,), pooling="mean", weighted=True)
    assert_close(embedding_bag(*batch.args, **batch.options), oracle(*batch.args, **batch.options))


@on_devices
@pytest.mark.parametrize(
    ("tables", "offsets", "shape"),
    [
        ([], [0], (0, 0)),
        ([(4, 3)], [0], (0, 3)),
        ([(0, 3)], [0, 0, 0], (2, 3)),
        ([(1, 2), (0, 3)], [0, 2, 3, 3, 3], (2, 5)),
        ([(4, 0)], [0, 3], (1, 0)),
    ],
    ids=["no features", "empty batch", "no rows", "one row", "no columns"],
)
def test_nothing_to_do(tables, offsets, shape):
    leaves = [torch.ones(size, requires_grad=True) for size in tables]
    ids, bag_ends = torch.zeros(offsets[-1], dtype=torch.int64), torch.tensor(offsets)
    out = embedding_bag(leaves, ids, bag_ends)
    assert out.shape == shape
    assert_close(out, oracle(leaves, ids, bag_ends))
    if leaves:
        out.sum().backward()
        assert all(leaf.grad is not None and leaf.grad.shape == leaf.shape for leaf in leaves)


def test_threads_change_no_bit():
    batch = random_bags(
        dims=(33, 7, 4), rows=(50, 300, 3), features=[0, 1, 2, 1], blocks=2, samples=600, longest=12,
        weighted=True, pooling=["sum", "mean", "mean", "sum"], block_order=[1, 0],
    )  # fmt: skip
    grad = torch.randn(1200, batch.width)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append([embedding_bag(*batch.args, **batch.options), *gradients(embedding_bag, batch, grad)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_calls_from_several_python_threads():
    batches = [random_bags(seed=seed, samples=500, weighted=True) for seed in range(4)]
    expected = [embedding_bag(*batch.args, **batch.options) for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [(i, pool.submit(embedding_bag, *batches[i].args, **batches[i].options)) for i in [0, 1, 2, 3] * 10]
        assert all(torch.equal(call.result(), expected[i]) for i, call in calls)


def test_update_in_place_before_the_backward():
    batch = random_bags(weighted=True).leaves()
    weights = batch.options.pop("per_sample_weights")
    frozen = weights.detach()
    out = embedding_bag(*batch.args, per_sample_weights=frozen, **batch.options)
    with torch.no_grad():
        batch.tables[0].zero_()
    out.sum().backward()  # sizes suffice
    out = embedding_bag(*batch.args, per_sample_weights=weights, **batch.options)
    with torch.no_grad():
        batch.tables[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_second_derivative_is_refused():
    batch = random_bags().leaves()
    out = embedding_bag(*batch.args).pow(3).sum()
    (grad,) = torch.autograd.grad(out, batch.tables[0], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated only once"):
        grad.sum().backward()


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype, weighted):
    batch = random_bags(dtype=dtype, weighted=weighted, features=[1, 0, 1]).leaves()
    weights = batch.options.get("per_sample_weights")
    torch.library.opcheck(torch.ops.dmt.embedding_bag, (*batch.args, weights, [1, 0, 1], [0, 1, 0]))
    grad = torch.randn(4, batch.width)
    detached = None if weights is None else weights.detach()
    torch.library.opcheck(
        torch.ops.dmt.embedding_bag_backward,
        (grad, batch.ids, batch.offsets, detached, [11, 7], [5, 3], dtype, [1, 0, 1], [0, 1, 0]),
    )
    tables = [table.detach() for table in batch.tables]
    torch.library.opcheck(
        torch.ops.dmt.embedding_bag_weights_backward, (grad, tables, batch.ids, batch.offsets, [1, 0, 1], [0, 1, 0])
    )


ONE = torch.ones(4, 2)
GOOD = {"tables": [ONE, torch.ones(3, 2)], "ids": torch.tensor([0, 1, 2]), "offsets": torch.tensor([0, 1, 1, 2, 3])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": [ONE, torch.ones(3, 2).double()]}, "all tables must have one dtype, but tables[0] is float32"),
        ({"tables": [ONE, torch.ones(3)]}, "tables[1] must have 2 dimensions, got shape [3]"),
        ({"tables": [ONE.long(), ONE.long()]}, "tables[0] must be float64, float32, float16 or bfloat16, got int64"),
        ({"tables": [ONE, torch.ones(2, 3).t()]}, "the columns of tables[1] must be adjacent"),
        ({"ids": torch.tensor([0.0, 1, 2])}, "ids must be int32 or int64, got float32"),
        ({"ids": torch.tensor([[0, 1, 2]])}, "ids must have 1 dimension, got shape [1, 3]"),
        ({"offsets": torch.tensor([0, 1, 1, 2, 3], dtype=torch.int32)}, "offsets must be int64, got int32"),
        ({"offsets": torch.tensor([0, 1, 1, 3])}, "offsets has 4 entries; 1 blocks of 2 features need 2*B + 1"),
        ({"offsets": torch.tensor([], dtype=torch.int64)}, "offsets must hold one entry more than there are bags"),
        ({"offsets": torch.tensor([0, 2, 1, 2, 3])}, "offsets[1] = 2 and offsets[2] = 1"),
        ({"offsets": torch.tensor([0, 1, 1, 2, 4])}, "the last offset is 4, but there are only 3 ids"),
        ({"offsets": torch.tensor([-1, 1, 1, 2, 3])}, "offsets[0] is -1"),
        ({"offsets": torch.tensor([0, 9, 1, 2, 3])}, "offsets[1] = 9 and offsets[2] = 1"),
        ({"per_sample_weights": torch.ones(2)}, "per_sample_weights must have the shape of ids, [3], got [2]"),
        ({"per_sample_weights": torch.ones(3).int()}, "per_sample_weights must be float64"),
        ({"feature_tables": [0, 2]}, "feature_tables[1] is 2, but there are 2 tables"),
        ({"pooling": ["sum"]}, "got 2 features, but 1 poolings"),
        ({"row_starts": [0]}, "got 2 tables, but 1 row_starts"),
        ({"row_starts": [0, -1]}, "row_starts[1] is -1"),
        ({"block_order": [0, 0]}, "block_order must be a permutation of 0..1"),
        ({"block_order": []}, "block_order must name at least one block"),
        ({"out_dtype": torch.float64}, "tables of float32 cannot give out_dtype float64"),
        ({"out_dtype": torch.int8}, "out_dtype must be float64, float32, float16 or bfloat16"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)  # fmt: skip
def test_bad_arguments(change, message):
    with pytest.raises(RuntimeError) as error:
        embedding_bag(**{**GOOD, **change})
    assert message in str(error.value) and str(error.value).startswith("embedding_bag: ")


def test_bad_names():
    with pytest.raises(ValueError, match="pooling is 'sum' or 'mean', not 'max'"):
        embedding_bag(**GOOD, pooling="max")
    with pytest.raises(ValueError, match="bounds is 'error', 'warn' or 'none', not 'ignore'"):
        embedding_bag(**GOOD, bounds="ignore")


def test_bounds_error_names_the_first():
    ids = torch.arange(64) % 10
    ids[[17, 40]] = torch.tensor([17, -3])
    offsets = torch.tensor([0, 10, 15, 20, 40, 41, 64])  # two features of three samples
    tables = [torch.ones(20, 2), torch.ones(10, 2), torch.ones(10, 2)]
    with pytest.raises(
        RuntimeError, match=r"embedding_bag: id 17 of table 2, feature 0, sample 2, position 2 is outside"
    ):
        embedding_bag(tables, ids, offsets, feature_tables=[2, 0])
    ids[17] = 0
    with pytest.raises(RuntimeError, match=r"id -3 of table 0, feature 1, sample 1, position 0 is outside \[0, 20\)"):
        embedding_bag(tables, ids, offsets, feature_tables=[2, 0])
    with pytest.raises(RuntimeError, match="id -3 of table 0, feature 0, sample 1, position 0, block 1 is negative"):
        embedding_bag(tables, ids, offsets, feature_tables=[0], row_starts=[3, 0, 0], block_order=[0, 1])


def test_bounds_warn_counts():
    batch = random_bags(samples=40, missing=True)
    rows = torch.tensor([11, 7]).repeat_interleave(40).repeat_interleave(batch.offsets.diff())
    count = int(((batch.ids < 0) | (batch.ids >= rows)).sum())
    with pytest.warns(UserWarning, match=f"^{count} of {len(batch.ids)} ids are out of range") as caught:
        out = embedding_bag(*batch.args, bounds="warn")
    assert caught[0].filename == __file__
    assert torch.equal(out, embedding_bag(*batch.args, bounds="none"))


def test_direct_call_equals_wrapper():
    """Each has an autograd of its own around the one backward: the same bits, and the same tensors saved."""
    batch = random_bags(weighted=True, features=[1, 0, 1], pooling="mean").leaves()
    options = batch.options
    weights = options["per_sample_weights"]
    poolings = [1, 1, 1]
    direct = torch.ops.dmt.embedding_bag(*batch.args, weights, options["feature_tables"], poolings)
    wrapped = embedding_bag(*batch.args, **options)
    assert torch.equal(direct, wrapped)
    grad = torch.randn_like(wrapped)
    grads = [torch.autograd.grad(out, batch.differentiable(), grad, retain_graph=True) for out in (direct, wrapped)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    with torch.no_grad():
        assert not embedding_bag(*batch.args, **options).requires_grad
        batch.tables[0].zero_()
    for out in (direct, wrapped):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_gradient_of_an_argument_that_alone_needs_one():
    batch = random_bags(weighted=True)
    for position in range(3):
        leaves = batch.leaves().differentiable()
        for i, leaf in enumerate(leaves):
            leaf.requires_grad_(i == position)
        out = embedding_bag(leaves[:2], batch.ids, batch.offsets, per_sample_weights=leaves[2])
        out.sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [i == position for i in range(3)]
    assert not embedding_bag(*batch.args, **batch.options).requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_width(dtype: torch.dtype, weighted: bool) -> None:
    """Columns are summed in tiles of vectors, the last ones in what is left of one."""
    widths = range(1, 560)
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randint(-8, 9, (5, width), generator=generator).to(dtype) for width in widths]
    ids = torch.randint(0, 5, (len(widths), 2, 3), generator=generator)
    weights = torch.randint(1, 4, ids.shape, generator=generator).float() if weighted else torch.ones(ids.shape)
    out = embedding_bag(
        tables,
        ids.flatten(),
        torch.arange(0, ids.numel() + 1, 3),
        per_sample_weights=weights.flatten() if weighted else None,
    )
    expected = [(t[i].double() * w[..., None]).sum(1) for t, i, w in zip(tables, ids, weights, strict=True)]
    assert torch.equal(out.double(), torch.cat(expected, dim=1))
