"""The roads compute the same: bit for bit among themselves, to rounding against plain PyTorch on the full batch."""

import functools

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
SPLITS = {
    "default": (),
    "columns": (("users", "columns"), ("words", "columns"), ("items", "columns")),
    "every-split": (
        ("users", "rows"),
        ("items", "columns"),
        ("times", "replicated"),
        ("words", "rows"),
        ("shops", "replicated"),
    ),
}
OPTIMIZERS = [TableOptimizer(kind, lr=0.1, weight_decay=0.01) for kind in ("sgd", "adagrad", "rowwise_adagrad")]  # type: ignore[arg-type]


def _name(value: object) -> str | None:
    return f"{value.towers}x{value.members}" if isinstance(value, Topology) else None


def _bitwise_worlds(topology: Topology) -> list[World]:
    worlds = [World(topology, splits) for splits in SPLITS.values()]
    if topology == Topology(2, 2):
        worlds += [
            World(topology, SPLITS["every-split"], optimizer=optimizer, weighted=weighted)
            for optimizer in OPTIMIZERS
            for weighted in (False, True)
        ]
    return worlds


def _float64_worlds(topology: Topology) -> list[World]:
    return [
        World(topology, SPLITS[name], dtype=torch.float64, compress=compress, weighted=name == "every-split")
        for name in ("default", "every-split")
        for compress in (False, True)
    ]


def _train_all(rank: int, topology: Topology) -> dict[tuple[World, str], dict[str, Tensor]]:
    both = [(world, kind) for world in _bitwise_worlds(topology) for kind in ("flat", "sptt")]
    return {key: train(*key, rank) for key in both + [(world, "sptt") for world in _float64_worlds(topology)]}


@functools.cache
def _trained(topology: Topology) -> list[dict[tuple[World, str], dict[str, Tensor]]]:
    """Everything that is trained on a topology, rank by rank; its ranks are started once."""
    return run_ranks(_train_all, topology.world, topology, timeout_s=240)


def _assert_bitwise(world: World) -> None:
    for rank, results in enumerate(_trained(world.topology)):
        flat, sptt = results[world, "flat"], results[world, "sptt"]
        assert flat.keys() == sptt.keys()
        own = world.plan().member_shards(world.topology.tower_of(rank), world.topology.member_of(rank))
        assert sum(name.startswith("shards.tables.") for name in flat) == len(own)
        for name in flat:
            assert torch.equal(flat[name], sptt[name]), f"{name}: {(flat[name] != sptt[name]).sum()} elements differ"


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=_name)
@pytest.mark.parametrize("splits", SPLITS)
def test_sptt_pass_through_is_flat_bit_for_bit(topology: Topology, splits: str) -> None:
    _assert_bitwise(World(topology, SPLITS[splits]))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.kind)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_every_optimizer_is_the_same_on_both_roads(optimizer: TableOptimizer, weighted: bool) -> None:
    _assert_bitwise(World(Topology(2, 2), SPLITS["every-split"], optimizer=optimizer, weighted=weighted))


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=_name)
@pytest.mark.parametrize("compress", [False, True], ids=["pass-through", "tower-modules"])
@pytest.mark.parametrize("splits", ["default", "every-split"])
def test_ranks_equal_one_process_with_plain_torch(topology: Topology, compress: bool, splits: str) -> None:
    world = World(topology, SPLITS[splits], dtype=torch.float64, compress=compress, weighted=splits == "every-split")
    expected = _plain_torch(world)
    local = train(world, "sptt", None)
    _assert_close(_whole_tables(world, [local]), expected)
    results = [rank[world, "sptt"] for rank in _trained(topology)]
    _assert_close(_whole_tables(world, results), expected)
    # [STEPS, B, C] of every rank, in rank order, is the global batch.
    outputs = torch.cat([result["outputs"] for result in results], dim=1)
    for actual in (local["outputs"], outputs):
        torch.testing.assert_close(actual, expected["outputs"], rtol=1e-10, atol=1e-10)


def test_replicas_stay_equal() -> None:
    by_key: dict[str, Tensor] = {}
    shared = 0
    for results in _trained(Topology(2, 2)):
        for name, value in results[World(Topology(2, 2), SPLITS["every-split"]), "sptt"].items():
            if name.startswith("shards."):
                shared += name in by_key
                assert torch.equal(by_key.setdefault(name, value), value), name
    assert shared == 4, "tables and states of the two replicated tables are held twice"


def _assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    # Table by table, "outputs" apart (a rank has only its share of them); and nothing may be missing on either side.
    assert actual.keys() == expected.keys()
    for name in actual.keys() - {"outputs"}:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


def _whole_tables(world: World, results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Shards put together, ``table.NAME`` and ``state.NAME``, and everything that is not a shard."""
    plan = world.plan()
    found: dict[str, Tensor] = {}
    for result in results:
        found |= result
    joined = {name: value for name, value in found.items() if not name.startswith("shards.")}
    for table in TABLES:
        parts = plan.table_shards(table)
        parts = parts[:1] if parts[0].replicated else parts
        for kind in ("table", "state"):
            values = [found[f"shards.{kind}s.{part.key}"] for part in parts]
            if kind == "state" and parts[0].splits_cols:  # of whole rows, on every shard
                assert all(torch.equal(values[0], value) for value in values)
                values = values[:1]
            joined[f"{kind}.{table.name}"] = torch.cat(values, dim=1 if parts[0].splits_cols and len(values) > 1 else 0)
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
    named |= {f"table.{k}": v.detach() for k, v in tables.items()} | {f"state.{k}": v for k, v in states.items()}
    return named | {"outputs": torch.stack(outputs)}


def _pool(table: Tensor, bags: list[Tensor], weights: list[Tensor], pooling: str, world: World) -> Tensor:
    rows = []
    for bag, weight in zip(bags, weights, strict=True):
        values = F.embedding(bag, table)
        if world.weighted:
            values = values * weight.float().to(world.dtype)[:, None]  # weights travel in float32
        rows.append(values.sum(0) / max(len(bag), 1) if pooling == "mean" else values.sum(0))
    return torch.stack(rows)
