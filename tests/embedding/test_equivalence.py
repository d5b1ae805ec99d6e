"""The roads compute the same: bit for bit among themselves, to rounding against plain PyTorch on the full batch."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dmt_kernels.embedding.initial_rows import initial_rows
from dmt_kernels.spec import TableOptimizer, Topology
from dmt_kernels.spec.shards import whole
from tests.embedding.worlds import SEED, STEPS, TABLES, World, global_batch, train
from tests.ranks import run_ranks

TOPOLOGIES = [Topology(1, 4), Topology(2, 2), Topology(4, 1), Topology(2, 3)]
EVERY_SPLIT = {"users": "rows", "items": "columns", "times": "replicated", "words": "rows", "shops": "replicated"}


def _name(value: object) -> str | None:
    if isinstance(value, Topology):
        return f"{value.towers}x{value.members}"
    return None


def _train_both(rank: int, world: World) -> dict[str, dict[str, Tensor]]:
    return {kind: train(world, kind, rank) for kind in ("flat", "sptt")}


def _train_sptt(rank: int, world: World) -> dict[str, Tensor]:
    return train(world, "sptt", rank)


def _assert_bitwise(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), f"{name}: {(left[name] != right[name]).sum()} elements differ"


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=_name)
@pytest.mark.parametrize(
    "splits",
    [{}, {"users": "columns", "words": "columns", "items": "columns"}, EVERY_SPLIT],
    ids=["default", "columns", "every-split"],
)
def test_sptt_pass_through_is_flat_bit_for_bit(topology: Topology, splits: dict[str, str]) -> None:
    world = World(topology, splits)
    for rank, result in enumerate(run_ranks(_train_both, topology.world, world)):
        assert any(name.startswith("shards.") for name in result["flat"]) or world.plan().member_shards(
            topology.tower_of(rank), topology.member_of(rank)
        ) == ()
        _assert_bitwise(result["flat"], result["sptt"])


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_every_optimizer_is_the_same_on_both_roads(kind: str, weighted: bool) -> None:
    world = World(Topology(2, 2), EVERY_SPLIT, optimizer=TableOptimizer(kind, lr=0.1, weight_decay=0.01), weighted=weighted)
    for result in run_ranks(_train_both, 4, world):
        _assert_bitwise(result["flat"], result["sptt"])


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=_name)
@pytest.mark.parametrize("compress", [False, True], ids=["pass-through", "tower-modules"])
@pytest.mark.parametrize("splits", [{}, EVERY_SPLIT], ids=["default", "every-split"])
def test_ranks_equal_one_process_with_plain_torch(topology: Topology, compress: bool, splits: dict[str, str]) -> None:
    world = World(topology, splits, dtype=torch.float64, compress=compress, weighted=bool(splits))
    expected = _plain_torch(world)
    _assert_close(_whole_tables(world, [train(world, "sptt", None)]), expected)
    results = run_ranks(_train_sptt, topology.world, world)
    _assert_close(_whole_tables(world, results), expected)
    # [STEPS, B, C] of every rank, in rank order, is the global batch.
    torch.testing.assert_close(
        torch.cat([r["outputs"] for r in results], dim=1), expected["outputs"], rtol=1e-10, atol=1e-10
    )


def test_replicas_stay_equal() -> None:
    results = run_ranks(_train_sptt, 4, World(Topology(2, 2), EVERY_SPLIT))
    by_key: dict[str, Tensor] = {}
    shared = 0
    for result in results:
        for name, value in result.items():
            if name.startswith("shards."):
                shared += name in by_key
                assert torch.equal(by_key.setdefault(name, value), value), name
    assert shared == 4, "tables and states of the two replicated tables are held twice"


def _assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in actual.keys() & expected.keys() - {"outputs"}:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    assert {f"table.{table.name}" for table in TABLES} <= actual.keys() & expected.keys()


def _whole_tables(world: World, results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Shards of all processes put together: ``table.NAME``, plus everything that is not a shard."""
    plan = world.plan()
    found: dict[str, Tensor] = {}
    for result in results:
        found |= result
    joined = {name: value for name, value in found.items() if not name.startswith("shards.")}
    for table in TABLES:
        parts = plan.table_shards(table)
        values = [found[f"shards.tables.{part.key}"] for part in parts]
        if parts[0].replicated:
            values = values[:1]
        joined[f"table.{table.name}"] = torch.cat(values, dim=1 if parts[0].splits_cols else 0)
    return joined


def _plain_torch(world: World) -> dict[str, Tensor]:
    """The same training with ``F.embedding_bag`` on whole tables and row-wise Adagrad written out."""
    plan = world.plan()
    tables = {
        table.name: initial_rows(whole(table, 0, 0), SEED, None, world.dtype).requires_grad_() for table in TABLES
    }
    states = {table.name: torch.zeros(table.rows, dtype=world.dtype) for table in TABLES}
    towers = world.tower_modules()
    widths = [sum(plan.tower_dims(t)) if towers is None else towers[t].out_width for t in range(plan.topology.towers)]
    over_arch = world.over_arch(sum(widths))
    modules = torch.nn.ModuleDict({str(t): module for t, module in (towers or {}).items()})
    dense = torch.optim.SGD([*over_arch.parameters(), *modules.parameters()], lr=0.05)
    features = plan.partition.features
    outputs = []
    for step in range(STEPS):
        ids, weights, target = global_batch(world, features, step)
        pooled = {
            f: _pool(tables[plan.feature_tables[f].name], ids[i], weights[i], plan.feature_tables[f].pooling, world)
            for i, f in enumerate(features)
        }
        columns = [torch.cat([pooled[f] for f in tower], dim=1) for tower in plan.partition.towers]
        columns = columns if towers is None else [towers[t](x) for t, x in enumerate(columns)]
        embeddings = torch.cat(columns, dim=1)
        outputs.append(embeddings.detach().clone())
        loss = ((over_arch(embeddings).squeeze(1) - target) ** 2).sum() / len(target)
        dense.zero_grad()
        loss.backward()
        dense.step()
        with torch.no_grad():
            for name, table in tables.items():
                assert table.grad is not None
                states[name] += table.grad.square().mean(1)
                table -= world.optimizer.lr * table.grad / (states[name].sqrt() + world.optimizer.eps)[:, None]
                table.grad = None
    named = {f"over_arch.{k}": v for k, v in over_arch.state_dict().items()}
    named |= {f"tower_modules.{k}": v for k, v in modules.state_dict().items()}
    return named | {f"table.{k}": v.detach() for k, v in tables.items()} | {"outputs": torch.stack(outputs)}


def _pool(table: Tensor, bags: list[Tensor], weights: list[Tensor], pooling: str, world: World) -> Tensor:
    rows = []
    for bag, weight in zip(bags, weights, strict=True):
        values = F.embedding(bag, table)
        if world.weighted:
            values = values * weight.float().to(world.dtype)[:, None]  # weights travel in float32
        rows.append(values.sum(0) / max(len(bag), 1) if pooling == "mean" else values.sum(0))
    return torch.stack(rows)
