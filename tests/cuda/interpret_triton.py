"""Runs the Triton twins on the CPU (TRITON_INTERPRET=1) beside the CPU's kernels. Called by test_triton.py."""

import contextlib
import itertools
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
import triton.language as tl

from dmt_kernels.ops.bag_arguments import on_device
from dmt_kernels.ops.reference import check_ids
from dmt_kernels.ops.triton import bags, embedding_bag, embedding_update, tower_pool, tower_pool_gradients, wire_codec
from dmt_kernels.spec import WireFormat
from tests.cuda import test_check_ids, test_embedding_bag, test_embedding_update, test_tower_pool
from tests.cuda.test_embedding_bag import arguments
from tests.ops.bags import random_bags
from tests.ops.updates import MANY, problem
from tests.ops.wire_rows import EXPONENTS, SPECIALS, random_rows

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def triton_op(name: str):
    """As ``torch.ops.dmt.<name>``, for the tests that take an op by its name."""
    return next(getattr(module, name) for module in TWINS if hasattr(module, name))


def check_bags() -> None:
    cases = itertools.product(["sum", "mean"], DTYPES, [False, True], [False, True])
    for seed, (pooling, dtype, weighted, shard) in enumerate(cases):
        case = random_bags(
            seed=seed, dims=(5, 40, 3), rows=(11, 7, 5), features=[1, 0, 2, 1], blocks=2, samples=3, dtype=dtype,
            id_dtype=[torch.int32, torch.int64][seed % 2], pooling=pooling, weighted=weighted, shard=shard,
            missing=True, block_order=[1, 0], slack=2,
        )  # fmt: skip
        given = arguments(case)
        close(embedding_bag.embedding_bag(*given), torch.ops.dmt.embedding_bag(*given), 0)
        if seed % 3 != seed // 12:  # the interpreter is slow
            continue
        tables, ids, offsets, weights, *layout, bounds = given
        out_width = [70, 5, 33][seed % 3]
        weight, bias = torch.randn(out_width, case.width).to(dtype), torch.randn(out_width).to(dtype)
        products, some_bias = [None, torch.bfloat16][seed % 2], [bias, None][seed // 2 % 2]
        full = (tables, ids, offsets, weight, some_bias, weights, *layout, bounds, False, products)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        close(tower_pool.tower_pool(*full), torch.ops.dmt.tower_pool(*full), tolerance)

        grad = torch.randn(6, case.width).to(DTYPES[(seed + 1) % 3])
        rows, dims = [len(table) for table in tables], [table.shape[1] for table in tables]
        agree("embedding_bag_weights_backward", 1e-5, grad, tables, ids, offsets, *layout)
        agree("embedding_bag_backward", 0, grad, ids, offsets, weights, rows, dims, dtype, *layout)
        grad = torch.randn(6, out_width)
        agree("tower_pool_weight_backward", tolerance, grad, tables, ids, offsets, weights, *layout, products)
        agree("tower_pool_pooled_backward", 1e-5, grad, weight[:, 1:40], products)


def agree(name: str, tolerance: float, *given) -> None:
    actual, expected = triton_op(name)(*given), getattr(torch.ops.dmt, name)(*given)
    for a, b in zip(*([x] if torch.is_tensor(x) else x for x in (actual, expected)), strict=True):
        close(a, b, tolerance)


def check_counts_of_many_ids() -> None:
    """Counters begin at 2^24, as behind so many ids: a float32 would stay there."""
    many, ids, offsets = 2**24, torch.zeros(6, dtype=torch.int64), torch.tensor([0, 6])
    table, grad, counts = torch.ones(1, 4), torch.ones(1, 4), torch.zeros(1)
    with counting_from(many, ()):
        pooled = embedding_bag.embedding_bag([table], ids, offsets, None, None, [1], None, None, 2)
        grads = embedding_bag.embedding_bag_weights_backward(grad, [table], ids, offsets, None, [1])
    with counting_from(many, (tower_pool.SAMPLES,)):
        arguments = ([table], ids, offsets, torch.eye(4), None, None, None, [1], None, None, 2)
        projected = tower_pool.tower_pool(*arguments)
    with counting_from(many, (1,)):
        embedding_update.count_kernel[(1,)](
            bags.describe([table], None, [1], None)[0], ids, offsets, counts, 6, 1, 1, IS_SHARD=False, POSITIONS=1
        )
    expected = torch.tensor(6.0) / (many + 6)
    assert (pooled == expected).all() and (projected == expected).all()
    assert (grads == torch.tensor(4.0) / (many + 6)).all() and counts == many + 6


@contextlib.contextmanager
def counting_from(first: int, shape: tuple[int, ...]) -> Iterator[None]:
    """Zeros of this shape are `first` instead: in the kernel that is called counters have it, and what is not used."""
    with mock.patch.object(tl, "zeros", lambda of, dtype: tl.full(of, first if tuple(of) == shape else 0, dtype)):
        yield


def check_pieces_of_samples() -> None:
    """More samples than one program sums for the weight's gradient."""
    case = random_bags(dims=(5, 36), rows=(11, 7), samples=70, longest=2)
    tower_pool_gradients.PIECE, tower_pool_gradients.PIECES = 1, 2
    given = (torch.randn(70, 8), *case.args, None, None, None, None, None)
    agree("tower_pool_weight_backward", 1e-4, *given)


def check_updates() -> None:
    cases = itertools.product(test_embedding_update.OPTIMIZERS, DTYPES, [False, True])
    for seed, (optimizer, dtype, weighted) in enumerate(cases):
        options = {"weight_decay": [0.0, 0.01][seed % 2]}
        grad_dtype = [None, torch.float32][seed // 2 % 2]
        given = {"dtype": dtype, "grad_dtype": grad_dtype, "weighted": weighted, "wide_ids": seed % 3 > 0}
        shapes = {"shapes": [(50, 64), (30, 20)], "feature_tables": [1, 0], "pooling": ["sum", "sum"]}
        shapes = [{**MANY, "samples": 3, "missing": 0.2}, {**shapes, "samples": 5}][seed // 4 % 2]
        case = problem(seed, **shapes, **given)
        test_embedding_update.assert_same_as_on_the_cpu(triton_op, case, optimizer, **options)
    test_embedding_update.test_wide_rows(triton_op, 700)
    for seed, dtype in enumerate(DTYPES):
        case = problem(seed, **{**MANY, "samples": 3, "missing": 0.2, "longest": 9}, dtype=dtype, weighted=True)
        test_embedding_update.check_row_statistic(triton_op, case, [0.01, 0.0, 0.01][seed])
    test_embedding_update.test_rows_without_a_statistic_show(triton_op)
    for dtype in (torch.float16, torch.bfloat16):
        test_embedding_update.test_any_weight_is_rounded_as_on_the_cpu(triton_op, dtype)
    for optimizer, dtype in zip(test_embedding_update.OPTIMIZERS, DTYPES, strict=True):
        test_embedding_update.test_weights_are_rounded_at_random(triton_op, dtype, optimizer, samples=4)


def check_addresses() -> None:
    """They are of this call's tensors, and no cache holds them: it would grow, or lose what a graph reads."""
    misses = set()
    for _ in range(3):
        tables = [torch.zeros(5, 4)[i:] for i in range(3)]
        states = [torch.zeros(5)[i:] for i in range(3)]
        for given in ([], states):
            features, width = bags.describe(tables, [1, 0, 2, 1], None, None, given)
            assert features[:, 0].tolist() == [tables[t].data_ptr() for t in (1, 0, 2, 1)] and width == 16
            assert features[:, 9].tolist() == ([given[t].data_ptr() for t in (1, 0, 2, 1)] if given else [0] * 4)
        misses.add(on_device.cache_info().misses)
    assert len(misses) == 1


def check_missing_ids() -> None:
    for seed, blocks in itertools.product(range(4), [1, 2]):
        case = random_bags(seed=seed, dims=(5, 40), rows=(11, 7), blocks=blocks, missing=seed % 2 == 0)
        given = (case.ids, case.offsets, [11, 7 - seed], blocks)
        assert torch.equal(triton_op("check_ids")(*given), torch.ops.dmt.check_ids(*given))
    test_check_ids.test_long_bags(triton_op)
    test_check_ids.test_wild_offsets_read_nothing_else(triton_op)


def check_records() -> None:
    test_embedding_bag.test_ids_out_of_range_are_recorded_once(triton_op)
    test_embedding_bag.test_offsets_are_clamped(triton_op)
    test_tower_pool.test_ids_out_of_range_are_recorded(triton_op)
    test_embedding_update.test_nothing_is_written_when_an_id_is_out_of_range(triton_op)


def check_inference_mode() -> None:
    """What it makes is cleared outside of it."""
    bags._records.clear()
    with torch.inference_mode():
        embedding_bag.embedding_bag([torch.randn(3, 4)], torch.tensor([7]), torch.tensor([0, 1]))
    assert bags.take_missing_ids(torch.zeros(0))[0] == 1
    assert bags.take_missing_ids(torch.zeros(0))[0] == 0


def check_codecs() -> None:
    for number, (wire_format, seed) in enumerate(itertools.product(WireFormat, [None, 5, -(2**63)])):
        for exponent in EXPONENTS[number % 3 :: 3]:
            x = random_rows(number, 3, 37, exponent, 20, DTYPES[number % 3] if abs(exponent) < 10 else torch.float32)
            x[0] = 0
            x[1, number % 37] = SPECIALS[number % len(SPECIALS)]
            given = (x, wire_format.code, seed, 3, 2**40)
            message = wire_codec.wire_encode(*given)
            assert torch.equal(message, torch.ops.dmt.wire_encode(*given)), (wire_format, seed, exponent)
            wide = torch.nn.functional.pad(message, (0, 3))[:, : message.shape[1]]
            dtype = DTYPES[exponent % 3]
            expected = torch.ops.dmt.wire_decode(message, 37, wire_format.code, dtype)
            close(wire_codec.wire_decode(wide, 37, wire_format.code, dtype), expected, 0)


def check_refusals() -> None:
    """What compiled kernels refuse, twins do: they would read, and write, somewhere else."""
    table, ids, offsets = torch.randn(3, 4), torch.tensor([0, 2]), torch.tensor([0, 1, 2])
    weight, state, rows = torch.randn(2, 4), torch.zeros(3), torch.randn(2, 4)
    wide, message = [torch.randn(3, 4), torch.randn(3, 4).half()], torch.ops.dmt.wire_encode(rows, 4)
    bags = (ids, offsets)
    refused = {
        "embedding_bag": [
            ([torch.randn(4, 3).t()], *bags),
            ([table.long()], *bags),
            (wide, ids, torch.tensor([0, 1, 1])),
            ([table], ids.short(), offsets),
            ([table], ids, offsets.int()),
            ([table], *bags, torch.ones(1)),
            ([table], *bags, None, [1]),
            ([table], *bags, None, None, [0, 0]),
            ([table], *bags, None, None, [2]),
            ([table], *bags, None, None, None, [-1]),
            ([table], *bags, None, None, None, None, [0, 7]),
            ([table], *bags, None, None, None, None, None, 3),
        ],
        "embedding_bag_": [
            (torch.empty(1, 4), [table], *bags),
            (torch.empty(2, 4).half(), [table], *bags),
            (torch.empty(4, 2).t(), [table], *bags),
        ],
        "embedding_bag_weights_backward": [(rows[:1], [table], *bags)],
        "embedding_update_": [
            ([table], [], rows[:, :3], *bags),
            ([table], [], rows.double(), *bags),
            ([table], [], rows.half(), *bags),
            ([table], [state[:1]], rows, *bags, *[None] * 5, 2, 2),
            ([table], [state.half()], rows, *bags, *[None] * 5, 2, 2),
            ([table], [], rows, *bags, *[None] * 5, 2, 2),
            ([table], [], rows, *bags, *[None] * 5, 2, 3),
            ([table], [torch.zeros(4, 3).t()], rows, *bags, *[None] * 5, 2, 1),
        ],
        "tower_pool": [
            ([table], *bags, weight[:, :3]),
            ([table], *bags, weight.half()),
            ([table], *bags, weight, torch.zeros(3)),
        ],
        "embedding_row_squares": [([table], rows[:, :3], *bags)],
        "embedding_bag_backward": [(rows[:, :3], *bags, None, [3], [4], torch.float32)],
        "tower_pool_weight_backward": [(torch.randn(1, 2), [table], *bags), (torch.randn(2), [table], *bags)],
        "tower_pool_pooled_backward": [(torch.randn(2, 3), weight)],
        "wire_encode": [(rows.long(), 4), (rows[0], 4), (rows, 5)],
        "wire_decode": [(message[:, :3], 4, 4), (message.int(), 4, 4)],
        "wire_encode_blocks_": [(torch.empty(3, dtype=torch.uint8), [rows], 4)],
        "wire_decode_blocks_": [([rows], torch.empty(99, dtype=torch.uint8), 4)],
    }
    for name, calls in refused.items():
        for given in calls:
            for op in (getattr(torch.ops.dmt, name), triton_op(name)):
                with pytest.raises(RuntimeError, match=rf"^{name}: "):
                    op(*given)


TWINS = [check_ids, bags, embedding_bag, embedding_update, tower_pool, tower_pool_gradients, wire_codec]
check_refusals()
check_inference_mode()
check_bags()
check_counts_of_many_ids()
check_pieces_of_samples()
check_updates()
for lengths, dim in (([300, 257, 1], 12), ([256, 3, 520], 7)):
    test_embedding_update.test_rows_that_are_hit_very_often(triton_op, lengths, dim)
check_records()
check_addresses()
check_missing_ids()
check_codecs()
print("all agree")
