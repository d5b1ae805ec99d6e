"""The CUDA lookup gives the bits of the CPU's, thread by thread; ids out of range are recorded."""

import pytest
import torch
from hypothesis import given, settings

from dmt_kernels.ops import embedding_bag
from tests.cuda.places import assert_same_bits, places
from tests.ops.bags import bags, random_bags

pytestmark = places
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def arguments(case, bounds=2):
    """Those of ``torch.ops.dmt.embedding_bag``, but for the output's dtype."""
    poolings = case.options["pooling"]
    names = [poolings] * len(case.features) if isinstance(poolings, str) else poolings
    options = [case.options.get(name) for name in ("per_sample_weights", "feature_tables", "row_starts", "block_order")]
    weights, features, starts, order = options
    return [*case.args, weights, features, [int(name == "mean") for name in names], starts, order, bounds]


def assert_same_as_on_the_cpu(op, case, out_dtype=None):
    case.options["bounds"] = "none"
    actual = op("embedding_bag")(*arguments(case), out_dtype)
    assert_same_bits(actual, embedding_bag(*case.args, **case.options, out_dtype=out_dtype))


@settings(max_examples=100, deadline=None)
@given(bags(dtypes=DTYPES))
def test_bits_of_the_cpu(op, case):
    assert_same_as_on_the_cpu(op, case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("longest", [1, 3, 40])
def test_runs_of_every_length(op, dtype, longest):
    """Rows in flight cross the ends of bags; features of more columns than a warp has packs; many blocks."""
    for dims, samples in [((128, 4), 37), ((300, 16), 37), ((32, 12), 700)]:
        case = random_bags(
            dims=dims, rows=(50, 9), blocks=2, samples=samples, longest=longest, dtype=dtype, pooling=["mean", "sum"],
            missing=True, block_order=[1, 0], slack=3,
        )  # fmt: skip
        assert_same_as_on_the_cpu(op, case)
        assert_same_as_on_the_cpu(op, case, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bags_of_one_id(op, dtype):
    """Rows are their own sums, but for zeros, which are not negative; some are missing, some held elsewhere."""
    case = random_bags(dims=(128, 4, 12), rows=(50, 9, 5), blocks=2, samples=701, dtype=dtype, shard=True)
    case.tables[0][::2, ::3] = -0.0
    case.offsets = torch.arange(len(case.offsets))
    ids = torch.cat([case.ids, torch.randint(-1, 60, (len(case.offsets),))])[: len(case.offsets) - 1]
    case.ids = ids.contiguous()
    for out_dtype in (None, torch.float32, torch.bfloat16):
        assert_same_as_on_the_cpu(op, case, out_dtype)
    pooled = op("embedding_bag")(*arguments(case), None)
    assert (pooled == 0).any() and not (pooled.signbit() & (pooled == 0)).any()


def test_tables_that_are_column_slices(op):
    case = random_bags(dims=(64, 40), rows=(20, 30), samples=9, features=[1, 0, 1])
    case.tables = [case.tables[0][:, 3:20], case.tables[1][:, 4:36]]
    assert_same_as_on_the_cpu(op, case)


def test_more_features_than_one_piece_of_an_upload_holds(op):
    features = [i % 3 for i in range(100)]
    assert_same_as_on_the_cpu(op, random_bags(dims=(4, 8, 3), rows=(5, 6, 7), features=features, samples=3))


def test_more_tables_in_turn_than_the_device_remembers(op):
    table = torch.randn(300, 4)
    ids, offsets = torch.arange(0, 600, 2), torch.arange(0, 301, 100)
    for rows in [*range(1, 300), 1, 300]:
        actual = op("embedding_bag")([table[:rows]], ids, offsets, bounds=2)
        assert_same_bits(actual, embedding_bag([table[:rows]], ids, offsets, bounds="none"))


def test_a_table_that_moves_or_changes(op):
    case = random_bags(samples=6)
    for _ in range(2):
        case.tables = [table + 1 for table in case.tables]
        assert_same_as_on_the_cpu(op, case)
        case.tables[0].mul_(2)
        assert_same_as_on_the_cpu(op, case)


def test_offsets_are_clamped(op):
    case = random_bags(samples=6)
    wild = case.offsets.clone()
    wild[[2, 5, -1]] = torch.tensor([-(2**62), 2**62, 2**40])
    op("embedding_bag")(case.tables, case.ids, wild)  # does not read outside of anything


def test_ids_out_of_range_are_recorded_once(op):
    take = op("take_missing_ids")
    case = random_bags(samples=5)
    take(case.ids)
    op("embedding_bag")(*arguments(case, bounds=0))
    assert take(case.ids)[0] == 0
    bag = int(case.offsets.diff()[5:].argmax()) + 5  # of feature 1
    case.ids[case.offsets[bag]] = 77
    op("embedding_bag")(*arguments(case, bounds=2))
    assert take(case.ids)[0] == 0
    op("embedding_bag")(*arguments(case, bounds=0))
    assert take(case.ids).tolist() == [1, 77, 1, 1, bag - 5, 0]
    assert take(case.ids)[0] == 0


@settings(max_examples=40, deadline=None)
@given(bags(dtypes=DTYPES))
def test_gradient_of_the_weights(op, case):
    grad = torch.randn(
        (case.offsets.numel() - 1) // max(1, len(case.features)), case.width, generator=torch.Generator().manual_seed(1)
    )
    tables, ids, offsets, _, *layout, _ = arguments(case)
    actual = op("embedding_bag_weights_backward")(grad, tables, ids, offsets, *layout)
    expected = torch.ops.dmt.embedding_bag_weights_backward(grad, tables, ids, offsets, *layout)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
