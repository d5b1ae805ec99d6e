"""Exchanges whose payloads are coarse, run once for many looks at them: tables, batches and gradients of all sizes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmt_kernels.comm import Mesh, traffic
from dmt_kernels.embedding import EmbeddingExchange, build_exchange
from dmt_kernels.planner import partition_features, place
from dmt_kernels.spec import Jagged, Payloads, Plan, Table, TableOptimizer, Topology, WireFormat
from dmt_kernels.towers import DLRMTower, TowerModule
from tests.embedding.worlds import mesh_of, to

TOPOLOGY = Topology(2, 2)
T, R, W = TOPOLOGY.towers, TOPOLOGY.members, TOPOLOGY.world
B = 6
SAMPLES = W * B
# One row for each sample of the global batch, so that its update is that sample's gradient.
TABLES = tuple(Table(name, SAMPLES, dim, (name,)) for name, dim in zip("abcdef", (8, 5, 6, 3, 7, 9), strict=True))
PARTITION = partition_features(TABLES, T)
SAMPLE_RANK = torch.arange(W).repeat_interleave(B)
TOWER, MEMBER = SAMPLE_RANK // R, SAMPLE_RANK % R
EXACT = WireFormat.FP32
LOSSY = [format for format in WireFormat if format is not EXACT]


@dataclass(frozen=True)
class Case:
    """One exchange of the batch, there and back."""

    kind: str
    linear: bool
    payloads: Payloads
    chunks: int = 1
    replicated: bool = False  # one of the tables
    placement: str = "member"
    dtype: torch.dtype = torch.float64
    device: str = "cpu"  # of the ranks

    @property
    def plan(self) -> Plan:
        return place(TABLES, PARTITION, TOPOLOGY, {"e": "replicated"} if self.replicated else {})

    @property
    def tower_modules(self) -> dict[int, TowerModule] | None:
        if not self.linear:
            return None
        dims = [self.plan.tower_dims(t) for t in range(T)]
        return {t: DLRMTower(dims[t], 4, c=2, p=1, seed=3, name=f"tower.{t}").to(self.dtype) for t in range(T)}

    @property
    def out_widths(self) -> list[int]:
        """``C_t``."""
        modules = self.tower_modules
        return [sum(self.plan.tower_dims(t)) if modules is None else modules[t].out_width for t in range(T)]

    def __str__(self) -> str:
        p = self.payloads
        formats = "-".join(f.value for f in (p.tower, p.tower_backward, p.peer, p.peer_backward))
        words = ["linear"] * self.linear + ["stochastic"] * p.stochastic + ["replicated"] * self.replicated
        words += [self.placement] * (self.placement != "member")
        return "-".join([self.kind, formats, str(self.chunks), *words])


CASES = [
    case
    for format in LOSSY
    for case in (
        Case("flat", False, Payloads.of(format)),
        Case("flat", False, Payloads.of(format), 2, replicated=True),
        Case("sptt", False, Payloads.of(format), 2),
        Case("sptt", False, Payloads(tower=format, tower_backward=format)),
        Case("sptt", True, Payloads.of(format)),
        Case("sptt", True, Payloads(tower=format), 3),
        Case("sptt", True, Payloads(tower_backward=format, peer_backward=format, stochastic=True), 2),
        Case("sptt", True, Payloads.of(format, format, stochastic=True), replicated=True),
        Case("sptt", True, Payloads(tower=format, tower_backward=format), 3, placement="owner"),
        Case("sptt", True, Payloads.of(format, format, stochastic=True), placement="owner"),
    )
]
ROUNDED = [  # for the mean of many steps; one stage after the other must not draw the same numbers
    *(Case("sptt", False, Payloads(peer_backward=format, stochastic=True), 2) for format in LOSSY),
    *(Case("sptt", False, Payloads(tower_backward=format, stochastic=True), 2) for format in LOSSY),
    *(Case("flat", False, Payloads(peer_backward=format, stochastic=True)) for format in LOSSY),
    Case("sptt", False, Payloads.of("bf16", "bf16", stochastic=True)),
    Case("sptt", False, Payloads.of("bf16", "int8", stochastic=True)),
    Case("sptt", False, Payloads.of("fp8", "fp8", stochastic=True)),
]
STEPS = 24

# On GPUs, in float32: a case of every kind with every format.
CASES_ON_GPUS = [case for i, case in enumerate(CASES) if i % 10 in (1, 2, 6, 7, 9)]
ROUNDED_ON_GPUS = [case for case in ROUNDED if case.payloads.peer_backward is WireFormat.INT8]


def ids_of(feature: int) -> Tensor:
    """The row of every sample: no row twice."""
    return (5 * torch.arange(SAMPLES) + feature) % SAMPLES


def _wide(rows: int, columns: int, seed: int) -> Tensor:
    """Numbers of all sizes, above all from row to row."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(-12, 8, (rows, 1), generator=generator) - 5 * torch.rand(rows, columns, generator=generator)
    return (torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1) * 2**size


def _as_held(values: Tensor, case: Case) -> Tensor:
    """In float64, what the ranks have of them."""
    return values.to(case.dtype).double()


def tables_of(case: Case, broken: bool) -> dict[str, Tensor]:
    tables = {table.name: _as_held(_wide(SAMPLES, table.dim, i), case) for i, table in enumerate(TABLES)}
    if broken:
        for (sample, name), value in zip(
            ((3, "a"), (9, "d"), (16, "e")), (torch.inf, torch.nan, -torch.inf), strict=True
        ):
            tables[name][ids_of(PARTITION.features.index(name))[sample], 1] = value
    return tables


def out_grad_of(case: Case, broken: bool) -> Tensor:
    """``[W * B, C]``: the loss is its product with the outputs."""
    width = sum(case.out_widths)
    grad = _as_held(_wide(SAMPLES, width, 99), case)
    if broken:
        for sample, column, value in ((2, 0, torch.nan), (11, -1, torch.inf), (20, width // 2, -torch.inf)):
            grad[sample, column] = value
    return grad


def _exchange(case: Case, mesh: Mesh, tables: dict[str, Tensor]) -> EmbeddingExchange:
    exchange = build_exchange(
        case.kind,
        case.plan,
        optimizer=TableOptimizer("sgd", lr=1.0),
        seed=1,
        mesh=mesh,
        tower_modules=case.tower_modules,
        dtype=case.dtype,
        chunks=case.chunks,
        payloads=case.payloads,
        placement=case.placement,
    ).to(case.device)
    for name, table in exchange.shards.tables.named_buffers():  # type: ignore[union-attr, operator]
        table.copy_(tables[name])
    return exchange


def _batch(rank: int) -> Jagged:
    ids = torch.stack([ids_of(f)[rank * B : (rank + 1) * B] for f in range(len(TABLES))])
    return Jagged(ids.flatten(), torch.arange(ids.numel() + 1))


def _updates(exchange: EmbeddingExchange, tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was subtracted so far from the tables that this rank holds."""
    held = exchange.shards.tables.named_buffers()  # type: ignore[union-attr, operator]
    return {name: tables[name] - table.cpu().double() for name, table in held}


@dataclass(frozen=True)
class Step:
    """What one rank saw."""

    out: Tensor
    updates: dict[str, Tensor]
    sent: tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]  # forward, backward


def _one_step(case: Case, mesh: Mesh, broken_tables: bool = False, broken_grad: bool = False) -> Step:
    tables = tables_of(case, broken_tables)
    exchange = _exchange(case, mesh, tables)
    grad = out_grad_of(case, broken_grad)[mesh.rank * B : (mesh.rank + 1) * B]
    traffic.reset()
    out = exchange(to(case.device, _batch(mesh.rank)))
    forward = traffic.sent_bytes()
    out.backward(grad.to(out))
    total = traffic.sent_bytes()
    backward = {key: size - forward.get(key, 0) for key, size in total.items()}
    return Step(out.detach().cpu().double(), _updates(exchange, tables), (forward, backward))


def _many_steps(case: Case, mesh: Mesh) -> list[dict[str, Tensor]]:
    """Updates after one step, after two, and after all; every sample has the same gradient in every step."""
    tables = {table.name: torch.zeros(SAMPLES, table.dim, dtype=torch.float64) for table in TABLES}
    exchange = _exchange(case, mesh, tables)
    grad = out_grad_of(case, False)[:1].expand(B, -1).to(case.device, case.dtype)
    updates = []
    for _ in range(STEPS):
        exchange(to(case.device, _batch(mesh.rank))).backward(grad)
        updates.append(_updates(exchange, tables))
    return [updates[0], updates[1], updates[-1]]


def every_case(rank: int, cases: list[Case], rounded: list[Case]) -> dict[str, dict[Case, Any]]:
    mesh = mesh_of(TOPOLOGY, cases[0].device)
    return {
        "steps": {case: _one_step(case, mesh) for case in cases},
        "broken": {
            case: (_one_step(case, mesh, broken_tables=True), _one_step(case, mesh, broken_grad=True)) for case in cases
        },
        "rounded": {case: _many_steps(case, mesh) for case in rounded},
    }
