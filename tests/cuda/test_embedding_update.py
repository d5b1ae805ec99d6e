"""The CUDA update gives the bits of the CPU's, thread by thread, but for the sums of rows that are hit very often."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cuda.places import assert_same_bits, cuda, places, simt
from tests.ops.bags import bags
from tests.ops.updates import MANY, OPTIMIZERS, Problem, all_updated, new_states, problem, problems

pytestmark = places
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
RUN = 128  # of csrc/kernels/cuda/embedding_update.h


def update(op, case: Problem, tables, states, optimizer, row_starts=None, bounds=2, weight_decay=0.0, **more):
    poolings = [int(name == "mean") for name in case.pooling]
    bags = (case.weights, case.feature_tables, poolings, row_starts, case.block_order)
    numbers = (more.get("lr", 0.1), more.get("eps", 1e-6), weight_decay)
    names = ("row_mean_squares", "seeds", "step", "column_starts")
    options = (bounds, OPTIMIZERS.index(optimizer), *numbers, *(more.get(name) for name in names))
    op("embedding_update_")(tables, states, case.grad, case.ids, case.offsets, *bags, *options)


def updated(op, case: Problem, optimizer: str, **options):
    tables, states = [table.clone() for table in case.tables], new_states(optimizer, case.tables)
    update(op, case, tables, states, optimizer, **options)
    return tables + states


def assert_same_as_on_the_cpu(op, case, optimizer, **options):
    for actual, expected in zip(
        updated(op, case, optimizer, **options), all_updated(case, optimizer, **options), strict=True
    ):
        assert_same_bits(actual, expected)


@settings(max_examples=100, deadline=None)
@given(problems(), st.sampled_from(OPTIMIZERS), st.sampled_from([0.0, 0.01]))
def test_bits_of_the_cpu(op, case, optimizer, weight_decay):
    if case.tables[0].dtype != torch.float64:
        assert_same_as_on_the_cpu(op, case, optimizer, weight_decay=weight_decay)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_stretches(op, dtype, optimizer):
    """Several features read a table; rows begin in one stretch of keys and end in the next."""
    case = problem(1, **MANY, dtype=dtype, samples=40, weighted=True, missing=0.1)
    assert_same_as_on_the_cpu(op, case, optimizer, weight_decay=0.01)
    one_each = {"shapes": [(500, 64), (30, 20)], "feature_tables": [1, 0], "pooling": ["sum", "sum"], "blocks": 2}
    case = problem(2, **one_each, dtype=dtype, grad_dtype=torch.float32, samples=60)
    assert_same_as_on_the_cpu(op, case, optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_of_many(op, dtype, optimizer):
    """All tables' first rows are updated before others."""
    shapes = {"shapes": [(9000, 8), (40, 16), (5000, 12)], "feature_tables": [2, 0, 1], "pooling": ["sum"] * 3}
    case = problem(4, **shapes, dtype=dtype, samples=60, weighted=True, missing=0.1)
    assert 16 * len(case.ids) < sum(len(table) for table in case.tables)
    rounding = {"seeds": [3, -1, 2**62], "step": torch.tensor(9)} if dtype != torch.float32 else {}
    assert_same_as_on_the_cpu(op, case, optimizer, **rounding, weight_decay=0.01)
    assert_same_as_on_the_cpu(op, case, optimizer, **rounding, row_starts=[100, 0, 7])
    case = problem(5, **shapes, dtype=dtype, samples=40, blocks=2)
    assert_same_as_on_the_cpu(op, case, optimizer)


@pytest.mark.parametrize("rows", [1, 7, 1023, 1024, 70_000])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_short_bags(op, rows, pooling):
    """Keys are sorted by the row within its table, those of each feature alone."""
    shapes = {"shapes": [(rows, 4), (9, 8), (300, 12)], "feature_tables": [1, 0, 2], "pooling": [pooling] * 3}
    for seed, weighted in ((7, False), (8, True)):
        case = problem(seed, **shapes, dtype=torch.float32, samples=300, longest=2, weighted=weighted, missing=0.2)
        assert len(case.ids) < 2 * 3 * 300
        assert_same_as_on_the_cpu(op, case, "rowwise_adagrad", weight_decay=0.01)


def test_many_short_bags(op):
    """A warp sorts many keys, in three passes."""
    shapes = {"shapes": [(2**21, 1), (5000, 3)], "feature_tables": [0, 1], "pooling": ["sum", "mean"]}
    case = problem(9, **shapes, dtype=torch.float32, samples=4001, longest=2)
    ids = torch.randint(2**21, case.ids.shape, generator=torch.Generator().manual_seed(9))
    ids[case.offsets[4001] :] %= 5000
    ids[::9] = -1
    assert_same_as_on_the_cpu(op, dataclasses.replace(case, ids=ids), "rowwise_adagrad")


@pytest.mark.parametrize("features", [1, 3, 5])
@pytest.mark.parametrize("lead", [50, 300])
def test_ids_that_no_feature_has(op, features, lead):
    """Those before the first offset; rows behind them are hit so often that they are summed in runs."""
    samples = 600
    ids = torch.full((features * samples,), 5)
    offsets = torch.arange(features * samples + 1).clamp(min=lead)
    tables = [torch.zeros(9, 4) for _ in range(features)]
    grad = torch.ones(samples, 4 * features)
    case = Problem(tables, list(range(features)), ["sum"] * features, [0], samples, ids, offsets, None, grad)
    assert_same_as_on_the_cpu(op, case, "sgd", lr=-1.0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_rounded_at_random(op, dtype, optimizer, samples=20):
    case = problem(6, **MANY, dtype=dtype, samples=samples, weighted=True)
    rounding = {"seeds": [3, -1, 2**62], "step": torch.tensor(9), "column_starts": [0, 2**33, 5]}
    assert_same_as_on_the_cpu(op, case, optimizer, **rounding, row_starts=[0, 0, 0])
    shard = {"row_starts": [2, 0, 50]}
    assert_same_as_on_the_cpu(op, case, optimizer, **rounding, **shard, weight_decay=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_any_weight_is_rounded_as_on_the_cpu(op, dtype):
    grad = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 65503.0, 65519.0, 65535.9, 65536.0, 3.4e38])
    grad = torch.cat([grad, torch.randn(54) * torch.logspace(-45, 38, 54)])[:, None].expand(64, 9).contiguous()
    ids, offsets = torch.arange(64), torch.arange(65)
    case = Problem([torch.zeros(64, 9, dtype=dtype)], [0], ["sum"], [0], 64, ids, offsets, None, grad)
    assert_same_as_on_the_cpu(op, case, "sgd", lr=-1.0, seeds=[5], step=torch.tensor(1))


@pytest.mark.parametrize("dim", [132, 257, 700, 2000])
def test_wide_rows(op, dim):
    shape = {"shapes": [(40, dim)], "feature_tables": [0], "pooling": ["sum"], "samples": 20}
    assert_same_as_on_the_cpu(op, problem(3, **shape), "rowwise_adagrad")


@pytest.mark.parametrize("shapes", [[(4, 0)], [(4, 0), (6, 5)], [(0, 3)]], ids=["alone", "beside others", "no rows"])
def test_rows_of_nothing(op, shapes):
    tables = [torch.ones(shape) for shape in shapes]
    features, width = list(range(len(shapes))), sum(shape[1] for shape in shapes)
    ids = torch.zeros(0 if shapes == [(0, 3)] else 5 * len(shapes), dtype=torch.int64)
    offsets = torch.arange(5 * len(shapes) + 1).clamp(max=len(ids))
    case = Problem(tables, features, ["sum"] * len(shapes), [0], 5, ids, offsets, None, torch.ones(5, width))
    assert_same_as_on_the_cpu(op, case, "sgd")
    sizes = ([table.shape[0] for table in tables], [table.shape[1] for table in tables])
    arguments = (case.grad, ids, offsets, None, *sizes, torch.float32, features, [0] * len(shapes))
    expected = on_the_cpu("embedding_bag_backward")(*arguments)
    for a, b in zip(op("embedding_bag_backward")(*arguments), expected, strict=True):
        assert_same_bits(a, b)


def row_squares(op, case: Problem, weight_decay: float):
    poolings = [int(name == "mean") for name in case.pooling]
    bags = (case.weights, case.feature_tables, poolings, None, case.block_order)
    return op("embedding_row_squares")(case.tables, case.grad, case.ids, case.offsets, *bags, weight_decay)


def on_the_cpu(name: str):
    return getattr(torch.ops.dmt, name).default


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.01]))
def test_row_statistic(op, case, weight_decay):
    """What column shards exchange, and the update by what they make of it."""
    if case.tables[0].dtype != torch.float64:
        check_row_statistic(op, case, weight_decay)


def check_row_statistic(op, case, weight_decay):
    expected = row_squares(on_the_cpu, case, weight_decay)
    for a, b in zip(row_squares(op, case, weight_decay), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0 if op in (simt, cuda) else 1e-14, atol=0)  # Triton sums in its order
    means = torch.cat(expected) / 7
    assert_same_as_on_the_cpu(op, case, "rowwise_adagrad", weight_decay=weight_decay, row_mean_squares=means)


def test_statistic_of_many_stretches(op):
    shared = problem(1, **MANY, samples=200, longest=9)
    shapes = {"shapes": [(3000, 9), (1, 3), (700, 20)], "feature_tables": [0, 1, 2], "pooling": ["sum"] * 3}
    for case in (shared, problem(2, **shapes, samples=500)):
        expected = row_squares(on_the_cpu, case, 0.0)
        for a, b in zip(row_squares(op, case, 0.0), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # some rows are summed in runs
    few = problem(2, **shapes, samples=30)
    assert 16 * len(few.ids) > 3000 and max(torch.bincount(few.ids)) < RUN
    sparse = problem(2, **(shapes | {"shapes": [(9000, 9), (1, 3), (700, 20)]}), samples=30)
    assert 16 * len(sparse.ids) < 9000
    for case in (few, sparse):
        check_row_statistic(op, case, 0.0)


def test_rows_without_a_statistic_show(op):
    """Where nobody waits to compare the sizes."""
    case = problem(3, shapes=[(9, 4)], feature_tables=[0], pooling=["sum"], samples=30)
    touched = case.ids.unique()
    _, state = updated(op, case, "rowwise_adagrad", row_mean_squares=torch.ones(len(touched) - 1).double())
    assert state.isnan().nonzero().flatten().tolist() == [int(touched[-1])]


def summed_in_runs(case: Problem) -> torch.Tensor:
    """The gradient of every row of the only table, in the order that the kernels promise."""
    samples = torch.repeat_interleave(torch.arange(case.samples), case.offsets.diff())
    total = torch.zeros_like(case.tables[0])
    for row in range(len(total)):
        values = case.grad[samples[case.ids == row]]
        whole = (len(values) - 1) // RUN * RUN if len(values) else 0
        sums = []
        for run in values[:whole].split(RUN):
            sums.append(torch.zeros(case.grad.shape[1]))
            for value in run:
                sums[-1] = sums[-1] + value
        for value in [*sums, *values[whole:]]:
            total[row] += value
    return total


@pytest.mark.parametrize(
    ("lengths", "dim"),
    [
        ([128, 129, 1], 12), ([1000, 3, 256, 257], 128), ([40, 2000], 132), ([127, 1, 128, 600], 7),
        ([1, 9000, 130, 4000], 4),  # a lane each looks for runs
    ],
)  # fmt: skip
def test_rows_that_are_hit_very_often(op, lengths, dim):
    """A row's sum depends on its own contributions alone, wherever its keys lie among the others'."""
    generator = torch.Generator().manual_seed(0)
    count = sum(lengths)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ids = ids[torch.randperm(count, generator=generator)]
    grad = torch.randn(count, dim, generator=generator)
    table = torch.zeros(len(lengths), dim)
    case = Problem([table], [0], ["sum"], [0], count, ids, torch.arange(count + 1), None, grad)
    assert_same_bits(updated(op, case, "sgd", lr=-1.0)[0], summed_in_runs(case))


def test_rows_that_are_hit_very_often_among_many(op):
    """Among few rows of many."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.full((300,), 7), torch.randint(0, 9, (300,), generator=generator)])
    grad = torch.randn(300, 12 + 8, generator=generator)
    case = Problem(
        [torch.zeros(9000, 12), torch.zeros(9000, 8)], [0, 1], ["sum"] * 2, [0], 300, ids.flatten(),
        torch.arange(601), None, grad,
    )  # fmt: skip
    found = updated(op, case, "sgd", lr=-1.0)
    for table, here, columns in zip(found, ids, grad.split([12, 8], 1), strict=True):
        alone = Problem(
            [torch.zeros(9, columns.shape[1])], [0], ["sum"], [0], 300, here, torch.arange(301), None, columns
        )
        assert_same_bits(table[:9], summed_in_runs(alone))
        assert not table[9:].any()


def test_wild_offsets_are_clamped(op):
    for rows in (4, 9000):
        case = problem(3, shapes=[(rows, 8), (rows, 4)], feature_tables=[0, 1], pooling=["sum"] * 2, samples=40)
        wild = case.offsets.clone()
        wild[[2, 50, -1]] = torch.tensor([-(2**62), 2**62, 2**40])
        updated(op, dataclasses.replace(case, offsets=wild), "rowwise_adagrad")  # does not touch what is not a table
    short = problem(4, shapes=[(500, 8), (9, 4)], feature_tables=[0, 1], pooling=["sum"] * 2, samples=600, longest=2)
    for at, offset in ((0, 2**62), (600, -(2**62)), (600, 3), (601, 2**62), (1200, 5)):
        wild = short.offsets.clone()
        wild[at] = offset
        updated(op, dataclasses.replace(short, offsets=wild), "rowwise_adagrad")
    # Bags of the second feature walk down over those of the first, in pairs.
    down = (1120 - 4 * torch.arange(300)).clamp(min=0)
    over = torch.cat([2 * torch.arange(600), torch.stack([down, down + 2], 1).flatten(), torch.tensor([2])])
    for shift in range(4):
        tables, ids = [torch.zeros(9, 8) for _ in range(2)], torch.full((1200,), 5)
        updated(op, Problem(tables, [0, 1], ["sum"] * 2, [0], 600, ids, over + shift, None, torch.ones(600, 16)), "sgd")


def test_nothing_is_written_when_an_id_is_out_of_range(op):
    case = problem(4, **MANY, missing=0.05)
    assert (case.ids < 0).any()
    before = [table.clone() for table in case.tables]
    op("take_missing_ids")(case.ids)
    for actual, expected in zip(updated(op, case, "sgd", bounds=0), before, strict=True):
        assert torch.equal(actual, expected)
    assert op("take_missing_ids")(case.ids)[0] == (case.ids < 0).sum()


def test_missing_ids_of_the_only_bag_belong_to_no_row(op):
    """No bit of a key stands for samples or features then."""
    case = problem(5, shapes=[(2, 3)], feature_tables=[0], pooling=["sum"], samples=1)
    case = dataclasses.replace(case, ids=torch.tensor([-1, 0, -1, 7, 0]), offsets=torch.tensor([0, 5]), weights=None)
    assert_same_as_on_the_cpu(op, case, "rowwise_adagrad")
    for actual, expected in zip(row_squares(op, case, 0.0), row_squares(on_the_cpu, case, 0.0), strict=True):
        assert_same_bits(actual, expected)


@settings(max_examples=40, deadline=None)
@given(bags(dtypes=DTYPES))
def test_dense_gradients(op, case):
    poolings = case.options["pooling"]
    names = [poolings] * len(case.features) if isinstance(poolings, str) else poolings
    options = case.options
    grad = torch.randn((case.offsets.numel() - 1) // max(1, len(case.features)), case.width)
    arguments = (
        grad, case.ids, case.offsets, options.get("per_sample_weights"), [len(t) for t in case.tables],
        [t.shape[1] for t in case.tables], case.tables[0].dtype, options["feature_tables"],
        [int(name == "mean") for name in names], options["row_starts"], options["block_order"],
    )  # fmt: skip
    actual = op("embedding_bag_backward")(*arguments)
    for a, b in zip(actual, torch.ops.dmt.embedding_bag_backward(*arguments), strict=True):
        assert_same_bits(a, b)
