"""16-bit tables are rounded at random by seed, table, step and place: whatever the layout, and across a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dmt_kernels.embedding import EmbeddingExchange
from dmt_kernels.spec import InputError, TableOptimizer, Topology
from tests.embedding.test_equivalence import SPLITS
from tests.embedding.worlds import ADAGRAD, TABLES, World, build, global_batch, jagged

WORLD = World(Topology(2, 2), dtype=torch.bfloat16)


def train(world: World, exchange: EmbeddingExchange, steps: range) -> None:
    """With a loss whose gradients are the same in all layouts, step by step others."""
    for step in steps:
        ids, weights, _ = global_batch(world, exchange.features, step)
        out = exchange(jagged(world, ids, weights, 0, len(ids[0])))
        generator = torch.Generator().manual_seed(step)
        out.backward(torch.randn(out.shape, generator=generator).to(out.dtype))


def tables(world: World, exchange: EmbeddingExchange) -> dict[str, Tensor]:
    state, plan = exchange.whole_state(), world.plan()
    return {
        table.name: torch.cat([state[f"shards.tables.{shard.key}"] for shard in shards], dim=int(shards[0].splits_cols))
        for table in TABLES
        for shards in [[shard for shard in plan.table_shards(table) if not shard.replicated or shard.member == 0]]
    }


def trained(world: World, steps: int = 4) -> dict[str, Tensor]:
    exchange = build(world, "sptt", None)
    train(world, exchange, range(steps))
    return tables(world, exchange)


def test_every_split_has_the_bits_of_whole_tables() -> None:
    expected = trained(WORLD)
    for splits in SPLITS.values():
        actual = trained(replace(WORLD, splits=splits))
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_run_that_goes_on_draws_the_same_numbers() -> None:
    first = build(WORLD, "sptt", None)
    train(WORLD, first, range(2))
    state = {name: value.clone() for name, value in first.whole_state().items()}
    assert state["shards.step"] == 2
    second = build(WORLD, "sptt", None)
    second.load_whole_state(state)
    old = {name: value.clone() for name, value in state.items() if name != "shards.step"}
    third = build(WORLD, "sptt", None)
    third.load_whole_state(state)
    third.load_whole_state(old)
    assert third.whole_state()["shards.step"] == 0, "states of before there were steps begin at none"
    for exchange in (first, second):
        train(WORLD, exchange, range(2, 4))
    expected, resumed = tables(WORLD, first), tables(WORLD, second)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    state["shards.step"].zero_()
    second.load_whole_state(state)
    train(WORLD, second, range(2, 4))
    forgetful = tables(WORLD, second)
    assert any((forgetful[name] != expected[name]).any() for name in expected)


def test_rounding_is_a_choice() -> None:
    nearest = replace(WORLD, optimizer=replace(ADAGRAD, rounding="nearest"))
    at_random, rounded = trained(WORLD), trained(nearest)
    assert any((at_random[name] != rounded[name]).any() for name in rounded)
    assert "shards.step" not in build(World(Topology(1, 1)), "sptt", None).whole_state()  # tables of float32
    with pytest.raises(InputError, match="rounding 'up' is unknown"):
        TableOptimizer(rounding="up")  # type: ignore[arg-type]


def test_tables_keep_the_dtype_they_were_built_with() -> None:
    exchange = build(WORLD, "sptt", None)
    with pytest.raises(InputError, match=r"tables stay torch\.bfloat16"):
        exchange.float()
    assert exchange.to("cpu", torch.bfloat16) is exchange
    assert {state.dtype for state in exchange.shards.states.buffers()} == {torch.float32}
