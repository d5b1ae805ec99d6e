"""embedding_update_ gives the same bits for every layout of tables, blocks and threads."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from dmt_kernels.ops import embedding_row_squares, embedding_update_
from tests.ops.bags import DTYPES
from tests.ops.updates import (
    MANY,
    OPTIMIZERS,
    Problem,
    all_updated,
    assert_same_bits,
    new_states,
    problem,
    updated,
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_threads_do_not_change_bits(optimizer: str) -> None:
    # Enough ids for several pieces of every stage, and rows that hold a good part of them.
    shapes = [(5000, 16), (3, 40)]
    case = problem(
        4, shapes=shapes, feature_tables=[0, 1, 0], pooling=["sum", "mean", "mean"], samples=3000, longest=20
    )
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(all_updated(case, optimizer, weight_decay=0.1))
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("block_order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_block_order_gives_the_same_bits(optimizer: str, block_order: tuple[int, ...]) -> None:
    case = replace(problem(5, **MANY, weighted=True, longest=30), block_order=list(block_order))
    blocks = case.grad.view(3, case.samples, -1)
    in_order = blocks[case.block_order].flatten(0, 1)  # block k's gradient in place k
    expected = all_updated(replace(case, grad=in_order, block_order=[0, 1, 2]), optimizer)
    assert_same_bits(all_updated(case, optimizer), expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_blocks_equal_one_batch(optimizer: str) -> None:
    """K blocks of B samples are summed as one block of K*B samples is."""
    case = replace(problem(6, **MANY, weighted=True, longest=30), block_order=[0, 1, 2])
    keys = [(k, f, b) for f in range(4) for k in range(3) for b in range(case.samples)]
    whole = case.with_bags(case.bag_ids(), keys, block_order=[0], samples=3 * case.samples)
    assert_same_bits(all_updated(case, optimizer), all_updated(whole, optimizer))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_row_shards_have_the_whole_tables_bits(optimizer: str) -> None:
    case = problem(7, **MANY, weighted=True, missing=0.2, longest=30)
    tables, states = updated(case, optimizer, weight_decay=0.1, row_starts=[0, 0, 0])
    cuts = [(0, 4, 13), (0, 1, 4), (0, 100, 101)]
    for part in range(2):
        starts = [cut[part] for cut in cuts]
        rows = [slice(cut[part], cut[part + 1]) for cut in cuts]
        shards = replace(case, tables=[table[r] for table, r in zip(case.tables, rows, strict=True)])
        ours, ours_states = updated(shards, optimizer, weight_decay=0.1, row_starts=starts)
        assert_same_bits(ours, [table[r] for table, r in zip(tables, rows, strict=True)])
        assert_same_bits(ours_states, [state[r] for state, r in zip(states, rows, strict=False)])


def column_shards(case: Problem, part: int) -> Problem:
    """Columns [0, 2) or the rest of every table, as smaller tables."""
    cut = slice(0, 2) if part == 0 else slice(2, None)
    grad = torch.cat([case.grad[:, case.columns(f)][:, cut] for f in range(len(case.feature_tables))], 1)
    return replace(case, tables=[table[:, cut].contiguous() for table in case.tables], grad=grad)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_column_shards_have_the_whole_tables_bits(dtype: torch.dtype, optimizer: str) -> None:
    case = problem(8, **MANY, weighted=True, dtype=dtype, longest=30)
    whole = all_updated(case, optimizer, weight_decay=0.1)
    parts = [all_updated(column_shards(case, part), optimizer, weight_decay=0.1) for part in range(2)]
    assert_same_bits([torch.cat(both, 1) for both in zip(*parts, strict=True)], whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_column_shards_exchange_the_row_statistic(dtype: torch.dtype) -> None:
    case = problem(9, **MANY, weighted=True, dtype=dtype, longest=30)
    shards = [column_shards(case, part) for part in range(2)]
    squares = [
        embedding_row_squares(shard.tables, shard.grad, shard.ids, shard.offsets, **shard.bags, weight_decay=0.1)
        for shard in shards
    ]
    statistic = torch.cat(
        [(left + right) / table.size(1) for left, right, table in zip(*squares, case.tables, strict=True)]
    )
    tables, states = updated(case, "rowwise_adagrad", weight_decay=0.1)
    parts = [updated(shard, "rowwise_adagrad", weight_decay=0.1, row_mean_squares=statistic) for shard in shards]
    for t, table in enumerate(tables):
        joined = torch.cat([parts[0][0][t], parts[1][0][t]], 1)
        # In float32 a difference in the last bits of the float64 statistic is rounded away.
        tolerance = 1e-12 if dtype == torch.float64 else 0
        torch.testing.assert_close(joined, table, rtol=tolerance, atol=tolerance)
        for _, part_states in parts:
            torch.testing.assert_close(part_states[t], states[t], rtol=tolerance, atol=tolerance)


def test_slices_of_larger_tensors_are_updated_in_place() -> None:
    case = problem(10, **MANY)
    for optimizer in ("adagrad", "rowwise_adagrad"):
        big = [torch.full((2 * len(table), table.size(1) + 5), torch.nan) for table in case.tables]
        tables = [b[::2, 3:-2].copy_(table) for b, table in zip(big, case.tables, strict=True)]
        wanted = new_states(optimizer, tables)
        states = [
            torch.full((2, *state.shape[:1], *state.shape[1:]), torch.nan).transpose(0, 1)[:, 0] for state in wanted
        ]
        for state, value in zip(states, wanted, strict=True):
            state.copy_(value)
        options = {"optimizer": optimizer, "lr": 0.1, "eps": 1e-6}
        embedding_update_(tables, states, case.grad, case.ids, case.offsets, **case.bags, **options)
        assert_same_bits(tables + states, all_updated(case, optimizer))
        for b, table in zip(big, tables, strict=True):
            assert int(b.isnan().sum()) == b.numel() - table.numel()


def test_strided_gradient() -> None:
    case = problem(11, **MANY)
    expanded = replace(case, grad=torch.full((1, 1), 0.5).expand(case.grad.shape))
    expected = updated(replace(case, grad=torch.full(case.grad.shape, 0.5)), "sgd")
    assert_same_bits(updated(expanded, "sgd")[0], expected[0])
