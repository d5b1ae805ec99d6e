"""embedding_update_ rounds 16-bit tables at random: without bias, and alike whatever the layout and the threads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmt_kernels.ops import embedding_update_
from dmt_kernels.ops.reference import embedding_update as reference
from tests.ops.test_embedding_update_layout import column_shards
from tests.ops.updates import MANY, OPTIMIZERS, all_updated, assert_same_bits, new_states, problem, updated

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
EVERY = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def at_random(tables: int = 3, step: int = 5, **more: Any) -> dict[str, Any]:
    return {"seeds": [2**62 + 7 * t for t in range(tables)], "step": torch.tensor(step)} | more


def stored(values: Tensor, dtype: torch.dtype, **options: Any) -> Tensor:
    """What becomes of float32 values: the update of a table of zeros by them."""
    table, ids = torch.zeros(values.shape, dtype=dtype), torch.arange(len(values))
    bags = (ids, torch.arange(len(values) + 1))
    embedding_update_([table], [], values, *bags, optimizer="sgd", lr=-1.0, **options)
    return table


@DTYPES
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([-150, -133, -30, -24, -15, -14, 0, 15, 120]), st.integers(1, 40))
def test_any_float_becomes_one_of_its_neighbours(dtype: torch.dtype, number: int, exponent: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(number)
    values = torch.randn(9, dim, generator=generator) * torch.ldexp(torch.ones(9, dim), torch.tensor(exponent))
    values[0, 0], values[1, 0], values[2, 0] = torch.inf, torch.nan, -0.0
    ours = stored(values, dtype, **at_random(1, number, column_starts=[3]))
    words = reference.words_of_rows(reference.message_key(2**62, number), range(9), dim + 3)[:, 3:]
    oracle = reference.at_random(values, dtype, words)
    torch.testing.assert_close(ours, oracle.to(dtype), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(ours.float(), oracle, rtol=0, atol=0, equal_nan=True)  # the oracle rounded, not the cast


@DTYPES
def test_the_mean_is_right(dtype: torch.dtype) -> None:
    """An element goes up as often as its distance says, within four standard deviations, at every place and step."""
    info, rows = torch.finfo(dtype), 4000
    fractions = torch.tensor([0.0, 0.01, 0.25, 0.5, 0.9])
    for base in (1.0, -1.5, 2.0**-20):  # of halves, the last one is below the least normal number
        unit = max(2.0 ** math.floor(math.log2(abs(base))), info.smallest_normal) * info.eps * math.copysign(1, base)
        values = torch.full((rows, 1), base) + unit * fractions
        for step in range(2):
            up = (stored(values, dtype, **at_random(1, step)).float() - base) / unit
            assert set(up.unique().tolist()) <= {0.0, 1.0}
            deviation = (fractions * (1 - fractions) / rows).sqrt()
            assert ((up.mean(0) - fractions).abs() <= 4 * deviation).all()


@DTYPES
def test_small_steps_add_up(dtype: torch.dtype) -> None:
    """200 steps of a fiftieth of the last place move a table by 4 places; to nearest they are lost."""
    unit, rows = torch.finfo(dtype).eps, 500
    tables = [torch.ones(rows, 4, dtype=dtype) for _ in range(2)]
    arguments = (torch.full((rows, 4), -unit / 50), torch.arange(rows), torch.arange(rows + 1))
    for step in range(200):
        embedding_update_([tables[0]], [], *arguments, optimizer="sgd", lr=1.0, **at_random(1, step))
        embedding_update_([tables[1]], [], *arguments, optimizer="sgd", lr=1.0)
    moved = (tables[0].double() - 1) / unit
    deviation = (200 * 0.02 * 0.98 / moved.numel()) ** 0.5
    assert abs(float(moved.mean()) - 4) < 4 * deviation
    assert (tables[1] == 1).all()


@EVERY
@DTYPES
def test_equals_oracle(dtype: torch.dtype, optimizer: str) -> None:
    case = problem(1, **MANY, dtype=dtype, weighted=True, missing=0.2, longest=30)
    options = {"lr": 0.1, "eps": 1e-6, "weight_decay": 0.1} | at_random(column_starts=[5, 0, 7])
    ours = all_updated(case, optimizer, **options)
    tables, states = [table.clone() for table in case.tables], new_states(optimizer, case.tables)
    bags = (case.grad, case.ids, case.offsets)
    reference.embedding_update_(tables, states, *bags, **case.bags, optimizer=optimizer, **options)
    if optimizer == "rowwise_adagrad":  # whose mean is summed in another order: a few lie next to another threshold
        far = sum(int((a != b).sum()) for a, b in zip(ours, tables, strict=False))
        assert far <= 0.01 * sum(table.numel() for table in tables)
    else:
        assert_same_bits(ours, tables + states)
    assert any((a != b).any() for a, b in zip(ours, all_updated(case, optimizer, weight_decay=0.1), strict=True))


@EVERY
@DTYPES
def test_layouts_have_the_whole_tables_bits(dtype: torch.dtype, optimizer: str) -> None:
    case = problem(7, **MANY, dtype=dtype, weighted=True, longest=30)
    tables, _ = updated(case, optimizer, row_starts=[0, 0, 0], **at_random())
    cuts = [(0, 4, 13), (0, 1, 4), (0, 100, 101)]
    for part in range(2):
        rows = [slice(cut[part], cut[part + 1]) for cut in cuts]
        shards = replace(case, tables=[table[r] for table, r in zip(case.tables, rows, strict=True)])
        ours, _ = updated(shards, optimizer, row_starts=[cut[part] for cut in cuts], **at_random())
        assert_same_bits(ours, [table[r] for table, r in zip(tables, rows, strict=True)])
    if optimizer != "rowwise_adagrad":  # whose statistic column shards exchange (tests/embedding/test_rounding.py)
        parts = [
            updated(column_shards(case, part), optimizer, **at_random(column_starts=[2 * part] * 3))[0]
            for part in range(2)
        ]
        assert_same_bits([torch.cat(both, 1) for both in zip(*parts, strict=True)], tables)


@DTYPES
def test_threads_do_not_change_bits(dtype: torch.dtype) -> None:
    shapes = [(5000, 16), (3, 40)]
    case = problem(4, shapes=shapes, feature_tables=[0, 1], pooling=["sum"] * 2, samples=3000, dtype=dtype)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(all_updated(case, "rowwise_adagrad", **at_random(2)))
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_wider_tables_are_not_rounded() -> None:
    case = problem(2, **MANY)
    assert_same_bits(all_updated(case, "adagrad", **at_random()), all_updated(case, "adagrad"))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("expected 1 seeds, got 2", {"seeds": [1, 2]}),
        ("expected 1 column_starts, got 0", {"column_starts": []}),
        ("seeds and step belong together", {"step": None}),
        ("step must be int64 and have no dimensions, got int32 of shape", {"step": torch.zeros((), dtype=torch.int32)}),
        (r"step must be int64 and have no dimensions, got int64 of shape \[1\]", {"step": torch.tensor([1])}),
    ],
)
def test_refuses(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=f"embedding_update_: {message}"):
        stored(torch.ones(2, 3), torch.float16, **(at_random(1) | changes))


def test_opcheck() -> None:
    case = problem(13, **MANY, dtype=torch.bfloat16)
    arguments = (case.tables, [], case.grad, case.ids, case.offsets)
    layout = (None, case.feature_tables, [0, 1, 1, 0], None, case.block_order)
    rounding = ([1, 2, 3], torch.tensor(4), [0, 0, 9])
    options = (0, OPTIMIZERS.index("sgd"), 0.1, 1e-6, 0.0, None)
    torch.library.opcheck(torch.ops.dmt.embedding_update_, (*arguments, *layout, *options, *rounding))
