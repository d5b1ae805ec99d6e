"""A small world to train in: tables of every kind of split, a global batch per step, and one over-arch."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmt_kernels.comm import Mesh, all_reduce_flat, build_mesh
from dmt_kernels.embedding import EmbeddingExchange, build_exchange
from dmt_kernels.planner import partition_features, place
from dmt_kernels.spec import Jagged, Payloads, Plan, Table, TableOptimizer, Topology
from dmt_kernels.towers import DCNTower, DLRMTower, PassThrough, TowerModule

SEED = 7
STEPS = 4
SAMPLES = 6  # per rank: so many that there are chunks that divide it and chunks that do not
TABLES = (
    Table("users", 11, 8, ("user",)),
    Table("items", 7, 6, ("clicked", "shown")),  # shared by two features
    Table("places", 1, 3, ("place",)),  # one row
    Table("words", 23, 5, ("word",), pooling="mean"),
    Table("times", 4, 8, ("time",)),
    Table("shops", 9, 4, ("shop",), pooling="mean"),
)
ADAGRAD = TableOptimizer("rowwise_adagrad", lr=0.1)


@dataclass(frozen=True)
class World:
    """What is trained, and how it is laid out."""

    topology: Topology
    splits: tuple[tuple[str, str], ...] = ()
    dtype: torch.dtype = torch.float32
    optimizer: TableOptimizer = ADAGRAD
    weighted: bool = False
    tower: str | None = None
    chunks: int = 1
    payloads: Payloads | None = None
    placement: str = "member"
    device: str = "cpu"  # of the ranks
    by_chunk: str | None = None  # the over-arch has one chunk after the other: its "outputs", or its "loss", too

    def plan(self) -> Plan:
        return place(TABLES, partition_features(TABLES, self.topology.towers), self.topology, dict(self.splits))

    def tower_modules(self) -> dict[int, TowerModule] | None:
        if self.tower is None:
            return None
        make = _TOWERS[self.tower]
        return {t: make(self.plan().tower_dims(t), t).to(self.dtype) for t in range(self.topology.towers)}

    def over_arch(self, width: int) -> nn.Module:
        torch.manual_seed(SEED)
        return nn.Sequential(nn.Linear(width, 9), nn.ReLU(), nn.Linear(9, 1)).to(self.dtype)


class _Halve(TowerModule):
    """Something with parameters and a nonlinearity that is not one of the package's own modules."""

    def __init__(self, dims: tuple[int, ...], tower: int) -> None:
        super().__init__(dims, -(-sum(dims) // 2))
        torch.manual_seed(SEED + tower)
        self.linear = nn.Linear(sum(dims), self.out_width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


_TOWERS: dict[str, Callable[[tuple[int, ...], int], TowerModule]] = {
    "pass": lambda dims, tower: PassThrough(dims),
    "linear": lambda dims, tower: DLRMTower(dims, 3, c=1, p=1, seed=SEED, name=f"tower.{tower}"),
    "cross": lambda dims, tower: DCNTower(dims, -(-sum(dims) // 2), seed=SEED, name=f"tower.{tower}"),
    "custom": _Halve,
}


def global_batch(
    world: World, features: tuple[str, ...], step: int
) -> tuple[list[list[Tensor]], list[list[Tensor]], Tensor]:
    """Ids and weights ``[feature][sample]`` and targets ``[W * B]`` of one step; bags are skewed, some empty."""
    generator = torch.Generator().manual_seed(1000 + step)
    samples = SAMPLES * world.topology.world
    rows = {feature: table.rows for table in TABLES for feature in table.features}
    draws = {}
    for feature in sorted(rows):  # one stream, whatever the order of features in the layout
        lengths = torch.randint(0, 5, (samples,), generator=generator).tolist()
        ids = [(torch.rand(n, generator=generator) ** 2 * rows[feature]).long() for n in lengths]
        draws[feature] = (ids, [torch.rand(n, generator=generator, dtype=world.dtype) for n in lengths])
    target = torch.rand(samples, generator=generator).to(world.dtype)
    return [draws[f][0] for f in features], [draws[f][1] for f in features], target


def jagged(world: World, ids: list[list[Tensor]], weights: list[list[Tensor]], first: int, last: int) -> Jagged:
    """Samples ``[first, last)`` of a global batch."""
    bags = [bag for feature in ids for bag in feature[first:last]]
    lengths = torch.tensor([0] + [len(bag) for bag in bags])
    flat_weights = torch.cat([bag for feature in weights for bag in feature[first:last]])
    return Jagged(torch.cat(bags), lengths.cumsum(0), flat_weights.float() if world.weighted else None)


def to(device: torch.device | str, sparse: Jagged) -> Jagged:
    """The bags there."""
    weights = None if sparse.weights is None else sparse.weights.to(device)
    return Jagged(sparse.ids.to(device), sparse.offsets.to(device), weights)


@functools.cache
def mesh_of(topology: Topology, device: str) -> Mesh:
    """The one mesh of this process."""
    return build_mesh(topology.towers, topology.members, device=device, timeout_s=30)


def build(world: World, kind: str, rank: int | None) -> EmbeddingExchange:
    """The exchange of a world; ``rank`` None is one process with local towers."""
    return build_exchange(
        kind,
        world.plan(),
        optimizer=world.optimizer,
        seed=SEED,
        mesh=None if rank is None else mesh_of(world.topology, world.device),
        tower_modules=world.tower_modules(),
        dtype=world.dtype,
        chunks=world.chunks,
        payloads=world.payloads,
        placement=world.placement,
    ).to(world.device)


def train(world: World, kind: str, rank: int | None) -> dict[str, Tensor]:
    """Train ``STEPS`` steps and return this process's outputs, tables, states and dense parameters by name, on the CPU.

    ``rank`` None is one process with local towers on the whole global batch.
    """
    mesh = None if rank is None else mesh_of(world.topology, world.device)
    exchange = build(world, kind, rank)
    over_arch = world.over_arch(sum(exchange.out_widths)).to(world.device)
    parameters = [*over_arch.parameters(), *exchange.tower_modules.parameters(), *exchange.tower_slices.parameters()]
    dense = torch.optim.SGD(parameters, lr=0.05)
    samples = SAMPLES * world.topology.world
    mine = slice(0, samples) if rank is None else slice(rank * SAMPLES, (rank + 1) * SAMPLES)
    outputs = []
    for step in range(STEPS):
        ids, weights, target = global_batch(world, exchange.features, step)
        seen: list[Tensor] = []

        def errors(embeddings: Tensor, target: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(embeddings.detach().clone())
            return over_arch(embeddings).squeeze(1) - target

        sparse = to(world.device, jagged(world, ids, weights, mine.start, mine.stop))
        aims = target[mine].to(world.device)

        def share(off: Tensor) -> Tensor:
            return (off**2).sum() / samples

        dense.zero_grad()
        if world.by_chunk == "loss":
            loss = exchange.finish_into_loss(exchange.start(sparse), lambda *part: share(errors(*part)), aims)
        elif world.by_chunk == "outputs":
            loss = share(exchange.finish_into(exchange.start(sparse), errors, aims))
        else:
            loss = share(errors(exchange(sparse), aims))
        assert rank is None or (len(seen) > 1) == (world.by_chunk is not None)
        outputs.append(torch.cat(seen))
        loss.backward()
        if mesh is not None:
            all_reduce_flat([p.grad for p in over_arch.parameters()], mesh.dense)
            all_reduce_flat([p.grad for p in exchange.tower_modules.parameters()], mesh.tower_dense)
        dense.step()
    return _state(exchange, over_arch) | {"outputs": torch.stack(outputs).cpu()}


def _state(exchange: EmbeddingExchange, over_arch: nn.Module) -> dict[str, Tensor]:
    named = {f"over_arch.{k}": v for k, v in over_arch.state_dict().items()} | exchange.whole_state()
    return {name: value.clone().cpu() for name, value in named.items()}
