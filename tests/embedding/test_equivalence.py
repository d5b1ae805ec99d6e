"""The roads compute the same: bit for bit among themselves, to rounding against plain PyTorch on the full batch."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dmt_kernels.embedding.initial_rows import initial_rows
from dmt_kernels.spec import Payloads, TableOptimizer, Topology
from dmt_kernels.spec.shards import whole
from tests.devices import on_cuda
from tests.embedding.worlds import SEED, STEPS, TABLES, World, global_batch, train
from tests.ranks import run_ranks
from tests.tolerances import TOLERANCES

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


# (chunks, road) that compute the bits of (1, "flat"). Four do not divide the samples of a rank: three are taken.
ROADS = [(1, "sptt"), (2, "sptt"), (4, "sptt"), (3, "flat")]
# Splits, tower module and chunks that are compared with plain PyTorch.
PLAIN: dict[Topology, list[tuple[str, str | None, int]]] = {
    Topology(1, 4): [("default", "linear", 2), ("every-split", "linear", 3), ("columns", "custom", 1)],
    Topology(2, 2): [
        ("default", None, 3),
        ("every-split", None, 2),
        ("default", "linear", 1),
        ("columns", "linear", 2),
        ("every-split", "linear", 4),
        ("every-split", "cross", 3),
        ("default", "custom", 2),
        ("every-split", "custom", 1),
    ],
    Topology(4, 1): [("default", "linear", 3), ("default", "cross", 2)],
    Topology(2, 3): [("every-split", "linear", 2), ("every-split", "custom", 3), ("columns", "cross", 4)],
}


# Coarse formats of embeddings and gradients, rounded at random.
COARSE = Payloads.of("int8", "fp8", stochastic=True)


def _coarse_world() -> World:
    return World(Topology(2, 2), SPLITS["every-split"], chunks=2, payloads=COARSE)


def _float64_world() -> World:
    return World(Topology(2, 2), SPLITS["every-split"], dtype=torch.float64)


def _optimizer_worlds() -> list[World]:
    return [
        World(Topology(2, 2), SPLITS["every-split"], optimizer=optimizer, weighted=weighted)
        for optimizer in OPTIMIZERS
        for weighted in (False, True)
    ]


def _plain_world(topology: Topology, splits: str, tower: str | None, chunks: int) -> World:
    return World(
        topology,
        SPLITS[splits],
        dtype=torch.float64,
        tower=tower,
        chunks=chunks,
        weighted=splits == "every-split",
        by_chunk={3: "outputs", 4: "loss"}.get(chunks),  # with two a whole batch of chunks is seen to be right, too
    )


# Splits and chunks of a linear tower module that stands at the owners of tables.
OWNERS: dict[Topology, list[tuple[str, int]]] = {
    Topology(1, 4): [("default", 2), ("columns", 1)],
    Topology(2, 2): [("default", 1), ("default", 4), ("columns", 2)],
    Topology(4, 1): [("default", 3)],
    Topology(2, 3): [("columns", 3)],
}


def _owner_world(topology: Topology, splits: str, chunks: int) -> World:
    return replace(_plain_world(topology, splits, "linear", chunks), placement="owner")


Results = dict[tuple[World, str], dict[str, Tensor]]  # of a rank, by world and road


def _train(rank: int, keys: list[tuple[World, str]]) -> Results:
    return {key: train(*key, rank) for key in keys}


def _keys(topology: Topology) -> list[tuple[World, str]]:
    keys = []
    for splits in SPLITS.values():
        world = World(topology, splits)
        keys += [(world, "flat"), (replace(world, tower="pass", chunks=2), "sptt")]
        keys += [(replace(world, chunks=chunks), kind) for chunks, kind in ROADS]
    if topology == Topology(2, 2):
        for world in _optimizer_worlds():
            keys += [(world, "flat"), (replace(world, chunks=2), "sptt")]
        keys += [(_coarse_world(), "flat"), (_coarse_world(), "sptt"), (_float64_world(), "sptt")]
        keys += [(replace(_float64_world(), chunks=2, payloads=Payloads(stochastic=True)), "sptt")]
    keys += [(_plain_world(topology, *layout), "sptt") for layout in PLAIN[topology]]
    keys += [(_owner_world(topology, *layout), "sptt") for layout in OWNERS[topology]]
    return keys


@functools.cache
def _trained(topology: Topology) -> list[Results]:
    """Everything that is trained on a topology, rank by rank; its ranks are started once."""
    return run_ranks(_train, topology.world, _keys(topology), timeout_s=240)


def _assert_bitwise(
    world: World, chunks: int, kind: str, tower: str | None = None, trained: list[Results] | None = None
) -> None:
    for rank, results in enumerate(trained or _trained(world.topology)):
        flat, other = results[world, "flat"], results[replace(world, chunks=chunks, tower=tower), kind]
        assert flat.keys() == other.keys()
        own = world.plan().member_shards(world.topology.tower_of(rank), world.topology.member_of(rank))
        assert sum(name.startswith("shards.tables.") for name in flat) == len(own)
        for name in flat:
            assert torch.equal(flat[name], other[name]), f"{name}: {(flat[name] != other[name]).sum()} elements differ"


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=_name)
@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize(("chunks", "kind"), ROADS, ids=lambda value: str(value))
def test_pass_through_is_flat_bit_for_bit(topology: Topology, splits: str, chunks: int, kind: str) -> None:
    _assert_bitwise(World(topology, SPLITS[splits]), chunks, kind)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=_name)
@pytest.mark.parametrize("splits", SPLITS)
def test_a_pass_through_module_is_no_module(topology: Topology, splits: str) -> None:
    _assert_bitwise(World(topology, SPLITS[splits]), 2, "sptt", "pass")


@pytest.mark.parametrize("world", _optimizer_worlds(), ids=lambda w: f"{w.optimizer.kind}{'-weighted' * w.weighted}")
def test_every_optimizer_is_the_same_on_both_roads(world: World) -> None:
    _assert_bitwise(world, 2, "sptt")


@pytest.mark.parametrize(
    "world",
    [
        *(_plain_world(topology, *layout) for topology, layouts in PLAIN.items() for layout in layouts),
        *(_owner_world(topology, *layout) for topology, layouts in OWNERS.items() for layout in layouts),
    ],
    ids=[
        *(f"{_name(topology)}-{s}-{t}-{n}" for topology, layouts in PLAIN.items() for s, t, n in layouts),
        *(f"{_name(topology)}-{s}-owner-{n}" for topology, layouts in OWNERS.items() for s, n in layouts),
    ],
)
def test_ranks_equal_one_process_with_plain_torch(world: World) -> None:
    expected = _plain_torch(world)
    _assert_close(world, [train(world, "sptt", None)], expected)
    _assert_close(world, [rank[world, "sptt"] for rank in _trained(world.topology)], expected)


@pytest.mark.parametrize("kind", ["flat", "sptt"])
@pytest.mark.parametrize("payloads", [None, COARSE], ids=["exact", "coarse"])
def test_replicas_stay_equal(kind: str, payloads: Payloads | None) -> None:
    world = _coarse_world() if payloads else World(Topology(2, 2), SPLITS["every-split"])
    _assert_equal_replicas([results[world, kind] for results in _trained(world.topology)])


def _assert_equal_replicas(results: list[dict[str, Tensor]]) -> None:
    by_key: dict[str, Tensor] = {}
    shared = 0
    for result in results:
        for name, value in result.items():
            if name.startswith("shards."):
                shared += name in by_key
                assert torch.equal(by_key.setdefault(name, value), value), name
    assert shared == 4, "tables and states of the two replicated tables are held twice"


def test_float64_travels_as_it_is() -> None:
    for results in _trained(Topology(2, 2)):
        plain = results[_float64_world(), "sptt"]
        other = results[replace(_float64_world(), chunks=2, payloads=Payloads(stochastic=True)), "sptt"]
        assert plain["outputs"].dtype == torch.float64 and plain.keys() == other.keys()
        assert all(torch.equal(plain[name], other[name]) for name in plain)


# What is on GPUs: two roads of equal bits, with what is odd about each topology, and what is like plain PyTorch.
ON_GPUS: dict[Topology, tuple[list[World], list[World]]] = {
    Topology(2, 2): (
        [
            World(Topology(2, 2), SPLITS["columns"]),
            World(Topology(2, 2), SPLITS["every-split"]),
            *(World(Topology(2, 2), SPLITS["every-split"], optimizer=o, weighted=True) for o in OPTIMIZERS),
        ],
        [
            World(Topology(2, 2), SPLITS["every-split"], chunks=2),
            World(Topology(2, 2), tower="linear"),
            World(Topology(2, 2), SPLITS["every-split"], tower="linear", chunks=4, weighted=True, by_chunk="loss"),
            World(Topology(2, 2), SPLITS["every-split"], tower="cross", chunks=3),
            World(Topology(2, 2), tower="linear", placement="owner"),
            World(Topology(2, 2), SPLITS["columns"], tower="linear", placement="owner", chunks=2, by_chunk="outputs"),
        ],
    ),
    # Blocks of a rank in the middle, which leave a gap where its own one is; and no peers, or no members.
    Topology(1, 3): (
        [World(Topology(1, 3), SPLITS["every-split"])],
        [
            World(Topology(1, 3), SPLITS["every-split"], tower="linear", chunks=2),
            World(Topology(1, 3), SPLITS["columns"], tower="linear", placement="owner", chunks=2),
        ],
    ),
    Topology(3, 1): (
        [World(Topology(3, 1), SPLITS["default"])],
        [
            World(Topology(3, 1), tower="linear", chunks=3),
            World(Topology(3, 1), tower="custom", chunks=2),
        ],
    ),
}


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_cuda)])
@pytest.mark.parametrize("topology", ON_GPUS, ids=_name)
def test_the_roads_of_gpus(topology: Topology, device: str) -> None:
    """The same in float32, and less of it: ranks that share a GPU take turns. Its kernels sum in a fixed order, too."""
    twins, plain = ([replace(world, device=device) for world in worlds] for worlds in ON_GPUS[topology])
    coarse = replace(_coarse_world(), device=device)
    keys = [(world, "sptt") for world in plain]
    if topology == coarse.topology:
        keys += [(coarse, "flat"), (coarse, "sptt")]
    for world in twins:
        keys += [(world, "flat"), (replace(world, chunks=4), "sptt"), (replace(world, tower="pass", chunks=2), "sptt")]
    trained = run_ranks(_train, topology.world, keys, device=device, timeout_s=120)
    for world in twins:
        _assert_bitwise(world, 4, "sptt", None, trained)
        _assert_bitwise(world, 2, "sptt", "pass", trained)
    if topology == coarse.topology:
        for world, kind in ((coarse, "flat"), (coarse, "sptt"), (twins[1], "flat")):
            _assert_equal_replicas([results[world, kind] for results in trained])
    for world in plain:
        _assert_close(world, [results[world, "sptt"] for results in trained], _plain_torch(world))


def _assert_close(world: World, results: list[dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    """Compare what all ranks, or one process, have trained with plain PyTorch."""
    actual = _whole_tables(world, results)
    # [STEPS, B, C] of every rank, in rank order, is the global batch.
    actual["outputs"] = torch.cat([result["outputs"] for result in results], dim=1)
    assert actual.keys() == expected.keys()  # nothing may be missing on either side
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], **TOLERANCES[world.dtype], msg=lambda m, n=name: f"{n}: {m}")


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
