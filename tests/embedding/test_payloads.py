"""Formats from end to end: how far outputs and gradients are off, what was sent, and what becomes of inf and NaN."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmt_kernels.comm import Mesh, traffic
from dmt_kernels.embedding import EmbeddingExchange, build_exchange
from dmt_kernels.embedding.column_layout import tower_layouts
from dmt_kernels.planner import partition_features, place
from dmt_kernels.spec import Jagged, Payloads, Plan, Table, TableOptimizer, Topology, WireFormat
from dmt_kernels.towers import DLRMTower, TowerModule
from tests.devices import on_cuda
from tests.embedding.worlds import mesh_of, to
from tests.ranks import run_ranks

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


def _arithmetic(case: Case, sizes: Tensor) -> Tensor:
    """How far sums are off by arithmetic, given what their terms add up to in size; float64's is allowed elsewhere."""
    return sizes * (0.0 if case.dtype is torch.float64 else 2**-18)


def _ids(feature: int) -> Tensor:
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


def _tables(case: Case, broken: bool) -> dict[str, Tensor]:
    tables = {table.name: _as_held(_wide(SAMPLES, table.dim, i), case) for i, table in enumerate(TABLES)}
    if broken:
        for (sample, name), value in zip(
            ((3, "a"), (9, "d"), (16, "e")), (torch.inf, torch.nan, -torch.inf), strict=True
        ):
            tables[name][_ids(PARTITION.features.index(name))[sample], 1] = value
    return tables


def _out_grad(case: Case, broken: bool) -> Tensor:
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
    ids = torch.stack([_ids(f)[rank * B : (rank + 1) * B] for f in range(len(TABLES))])
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
    tables = _tables(case, broken_tables)
    exchange = _exchange(case, mesh, tables)
    grad = _out_grad(case, broken_grad)[mesh.rank * B : (mesh.rank + 1) * B]
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
    grad = _out_grad(case, False)[:1].expand(B, -1).to(case.device, case.dtype)
    updates = []
    for _ in range(STEPS):
        exchange(to(case.device, _batch(mesh.rank))).backward(grad)
        updates.append(_updates(exchange, tables))
    return [updates[0], updates[1], updates[-1]]


def _every_case(rank: int, cases: list[Case], rounded: list[Case]) -> dict[str, dict[Case, Any]]:
    mesh = mesh_of(TOPOLOGY, cases[0].device)
    return {
        "steps": {case: _one_step(case, mesh) for case in cases},
        "broken": {
            case: (_one_step(case, mesh, broken_tables=True), _one_step(case, mesh, broken_grad=True)) for case in cases
        },
        "rounded": {case: _many_steps(case, mesh) for case in rounded},
    }


@functools.cache
def _results(what: str, case: Case) -> list:
    return [results[what][case] for results in _all_results()]


@functools.cache
def _all_results() -> list[dict[str, dict[Case, Any]]]:
    return run_ranks(_every_case, W, CASES, ROUNDED, timeout_s=200)


def _by_towers(columns: Tensor) -> list[Tensor]:
    """``[W * B, D_t]`` of every tower."""
    dims = {table.name: table.dim for table in TABLES}
    return list(columns.split([sum(dims[feature] for feature in tower) for tower in PARTITION.towers], dim=1))


def _pooled(tables: dict[str, Tensor]) -> Tensor:
    """``[W * B, sum(D_t)]``: what a batch looks up."""
    return torch.cat([tables[name][_ids(f)] for f, name in enumerate(PARTITION.features)], dim=1)


def _error(format: WireFormat, x: Tensor, error: Tensor, stays: Tensor, stochastic: bool) -> Tensor:
    """How far rows may be off that were off by `error` before they travelled. What stays on a rank is not rounded."""
    if format is EXACT or not x.numel():
        return error
    bound, most = format.error_bound(stochastic=stochastic), x.abs() + error
    # float64 is rounded to float32 first.
    more = (bound.of_value + 2**-23) * most + bound.of_maximum * most.amax(1, keepdim=True) + bound.least
    return torch.where(stays[:, None], error, error + more)


def _tower_error(t: int, format: WireFormat, x: Tensor, error: Tensor, case: Case, stochastic: bool) -> Tensor:
    """The same of the columns of a tower, ``[W * B, D_t]``, in the stage between its members and the samples' ranks."""
    layout, pieces = tower_layouts(case.plan)[t], []
    widths = (*layout.sent_widths, layout.kept_width)
    for columns in (x, error):
        pieces.append([columns.new_empty(SAMPLES, width) for width in widths])
        layout.scatter(columns, pieces[-1])
    for m in range(R):  # inside the tower a sample is its peer's
        is_own = SAMPLE_RANK.eq(TOPOLOGY.rank_of(t, m)) if case.kind == "flat" else MEMBER.eq(m)
        pieces[1][m] = _error(format, pieces[0][m], pieces[1][m], is_own, stochastic)
    if case.kind == "flat":  # kept columns come from the peer in the tower
        pieces[1][R] = _error(format, pieces[0][R], pieces[1][R], TOWER.eq(t), stochastic)
    return layout.assemble(pieces[1])


def _peer_error(t: int, format: WireFormat, x: Tensor, error: Tensor, stochastic: bool) -> Tensor:
    return _error(format, x, error, TOWER.eq(t), stochastic)


def _owned(t: int, case: Case) -> list[tuple[list[int], bool]]:
    """For every member its columns of the tower, and whether it has the bias."""
    layout = tower_layouts(case.plan)[t]
    ends = itertools.accumulate(layout.sent_widths)
    columns = [layout.columns_of_blocks[end - width : end] for end, width in zip(ends, layout.sent_widths, strict=True)]
    return [(own, m == 0) for m, own in enumerate(columns)]


def _expected(case: Case, tables: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of every tower, ``[W * B, C_t]``, and how far they may be off."""
    outputs, errors = [], []
    modules, p = case.tower_modules, case.payloads
    for t, x in enumerate(_by_towers(_pooled(tables))):
        first = p.peer if case.kind == "flat" else p.tower
        error = _tower_error(t, first, x, torch.zeros_like(x), case, False)
        if modules is not None:
            weight, bias = (p.detach().double() for p in modules[t].linear_weight_bias())  # type: ignore[union-attr]
            if case.placement == "owner":
                error = torch.zeros(SAMPLES, len(bias), dtype=torch.float64)
                for m, (columns, has_bias) in enumerate(_owned(t, case)):  # what travels are partial sums
                    partial = x[:, columns] @ weight[:, columns].t() + bias * has_bias
                    sums = _arithmetic(case, x[:, columns].abs() @ weight[:, columns].t().abs() + bias.abs())
                    error += _error(p.tower, partial, sums, MEMBER.eq(m), False)
            else:
                error = error @ weight.t().abs() + _arithmetic(case, x.abs() @ weight.t().abs() + bias.abs())
            x = x @ weight.t() + bias
        if case.kind == "sptt":
            error = _peer_error(t, p.peer, x, error, False)
        outputs.append(x)
        errors.append(error)
    return outputs, errors


def _expected_grads(case: Case, out_grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients of pooled rows, ``[W * B, sum(D_t)]``, given those of every tower's output; how far they may be off."""
    grads, errors = [], []
    modules, p = case.tower_modules, case.payloads
    for t, g in enumerate(out_grads):
        error, last = torch.zeros_like(g), p.peer_backward
        if case.kind == "sptt":
            error, last = _peer_error(t, p.peer_backward, g, error, p.stochastic), p.tower_backward
        if modules is not None:
            weight, _ = (p.detach().double() for p in modules[t].linear_weight_bias())  # type: ignore[union-attr]
            if case.placement == "owner":  # every owner multiplies what has arrived at it
                grads.append(g @ weight)
                errors.append(torch.empty_like(grads[-1]))
                for m, (columns, _) in enumerate(_owned(t, case)):
                    arrived = _error(last, g, error, MEMBER.eq(m), p.stochastic)
                    errors[-1][:, columns] = (arrived + _arithmetic(case, g.abs())) @ weight[:, columns].abs()
                continue
            g, error = g @ weight, (error + _arithmetic(case, g.abs())) @ weight.abs()
        grads.append(g)
        errors.append(_tower_error(t, last, g, error, case, p.stochastic))
    return torch.cat(grads, dim=1), torch.cat(errors, dim=1)


def _assert_within(actual: Tensor, expected: Tensor, error: Tensor) -> None:
    allowed = error + 1e-11  # of the arithmetic in float64
    excess = (actual - expected).abs() / allowed
    assert (excess <= 1).all(), (
        f"off by {excess.max():.3} times what may be, at {divmod(int(excess.argmax()), excess.shape[1])}"
    )


def _grads(updates: Sequence[dict[str, Tensor]]) -> Tensor:
    """``[W * B, sum(D_t)]`` from what ranks subtracted from their tables."""
    return _pooled(functools.reduce(lambda a, b: a | b, updates))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_are_off_by_no_more_than_the_formats_say(case: Case) -> None:
    _check_outputs(case, _results("steps", case))


def _check_outputs(case: Case, steps: list[Step]) -> None:
    outputs, errors = _expected(case, _tables(case, False))
    actual = torch.cat([step.out for step in steps])
    _assert_within(actual, torch.cat(outputs, dim=1), torch.cat(errors, dim=1))
    is_lossy = not {case.payloads.peer, case.payloads.tower} <= {EXACT}
    if is_lossy or case.dtype is torch.float64:
        rtol = 1e-12 if case.dtype is torch.float64 else 1e-4
        assert torch.allclose(actual, torch.cat(outputs, dim=1), rtol=rtol) != is_lossy


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_off_by_no_more_than_the_formats_say(case: Case) -> None:
    _check_gradients(case, _results("steps", case))


def _check_gradients(case: Case, steps: list[Step]) -> None:
    out_grads = _out_grad(case, False).split(case.out_widths, dim=1)
    expected, error = _expected_grads(case, out_grads)
    actual = _grads([step.updates for step in steps])
    # What is seen of a gradient is what it makes of a row.
    rows = _pooled(_tables(case, False)).abs() + expected.abs() + error
    _assert_within(actual, expected, error + _arithmetic(case, rows) / 32)
    is_lossy = not {case.payloads.peer_backward, case.payloads.tower_backward} <= {EXACT}
    if is_lossy or case.dtype is torch.float64:
        rtol = 1e-9 if case.dtype is torch.float64 else 1e-4
        assert torch.allclose(actual, expected, rtol=rtol) != is_lossy


@pytest.mark.parametrize("case", CASES, ids=str)
def test_messages_are_as_long_as_the_formats_say(case: Case) -> None:
    _check_messages(case, _results("steps", case))


def _check_messages(case: Case, steps: list[Step]) -> None:
    def row(format: WireFormat, columns: int) -> int:
        return case.dtype.itemsize * columns if format is EXACT else format.row_bytes(columns)

    def of(stages: dict[tuple[str, str], list[int]]) -> dict[tuple[str, str], int]:
        return {stage: B * sum(rows) for stage, rows in stages.items() if any(rows)}

    layouts, p = tower_layouts(case.plan), case.payloads
    for rank, step in enumerate(steps):
        t, r = divmod(rank, R)
        members, towers = [m for m in range(R) if m != r], [u for u in range(T) if u != t]
        widths, kept = layouts[t].sent_widths, layouts[t].kept_width
        replicas = [row(EXACT, kept)] * T * len(members)  # see all gradients as they are
        if case.kind == "flat":
            far = [width for u in towers for width in layouts[u].sent_widths]
            forward = {
                ("flat", "tower"): [row(p.peer, widths[r])] * len(members),
                ("flat", "peer"): [row(p.peer, widths[r])] * len(far),
                ("peer", "peer"): [row(p.peer, kept)] * len(towers) * case.replicated,
            }
            backward = {
                ("flat", "tower"): [row(p.peer_backward, widths[m]) for m in members],
                ("flat", "peer"): [row(p.peer_backward, width) for width in far],
                ("peer", "peer"): [row(p.peer_backward, layouts[u].kept_width) for u in towers] * case.replicated,
                ("tower", "tower"): replicas,
            }
        else:
            inside = [row(p.tower, widths[r])], [row(p.tower_backward, widths[m]) for m in members]
            if case.placement == "owner":  # partial sums, and their gradients
                inside = [row(p.tower, case.out_widths[t])], [row(p.tower_backward, case.out_widths[t])] * len(members)
            forward = {
                ("tower", "tower"): inside[0] * T * len(members),
                ("peer", "peer"): [row(p.peer, case.out_widths[t])] * len(towers),
            }
            backward = {
                ("tower", "tower"): inside[1] * T + replicas,
                ("peer", "peer"): [row(p.peer_backward, case.out_widths[u]) for u in towers],
            }
        for sent, expected in zip(step.sent, (of(forward), of(backward)), strict=True):
            over_wires = {key: size for key, size in sent.items() if key[1] != "self" and key[0] != "ids" and size}
            assert over_wires == expected


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inf_and_nan_arrive_as_no_number(case: Case) -> None:
    _check_broken(case, _results("broken", case))


def _check_broken(case: Case, steps: list[tuple[Step, Step]]) -> None:
    tables, rows = _tables(case, True), torch.ones(SAMPLES, dtype=torch.bool)
    expected = torch.cat(_expected(case, tables)[0], dim=1)
    actual = torch.cat([forward.out for forward, _ in steps])
    rows[[3, 9, 16]] = False
    assert not actual[~expected.isfinite()].isfinite().any() and (~expected.isfinite()).sum() >= 3
    assert actual[rows].isfinite().all(), "only where they are"

    actual = _grads([backward.updates for _, backward in steps])
    broken = ~_out_grad(case, True).isfinite()
    rows[:] = True
    rows[[2, 11, 20]] = False
    if case.linear:  # a product spreads them over the tower
        assert all((~part[~rows].isfinite()).any() for part in _by_towers(actual))
        assert (~actual[~rows].isfinite()).any(1).all()
    else:
        assert not actual[broken].isfinite().any()
    assert actual[rows].isfinite().all()


@pytest.mark.parametrize("case", ROUNDED, ids=str)
def test_stochastic_rounding_is_right_on_average(case: Case) -> None:
    _check_rounded(case, _results("rounded", case))


def _check_rounded(case: Case, updates: list[list[dict[str, Tensor]]]) -> None:
    grad = _out_grad(case, False)[:1].expand(SAMPLES, -1)
    # Between two numbers that a format has; nothing for a rank's own.
    _, step = _expected_grads(case, _by_towers(grad))
    first, second, total = (_grads([rank[i] for rank in updates]) for i in range(3))
    second = second - first
    mean = total.mean(0) / STEPS
    # A draw is off by half a step in the mean at most; those of STEPS steps and of half of the samples are independent.
    limit = 5 * 0.5 / (STEPS * SAMPLES / 2) ** 0.5
    assert ((mean - grad[0]).abs() <= limit * step.amax(0) + 1e-11).all()
    assert ((first - grad).abs() > 2 * limit * step).any(), "a single step is not that close"

    # No two draws are alike: steps, samples in chunks, and ranks.
    assert not torch.equal(first, second)
    by_rank, rounded = first.unflatten(0, (W, B)), (step > 0).unflatten(0, (W, B))
    for one, other in itertools.combinations(range(W), 2):
        if (both := rounded[one] & rounded[other]).any():
            assert (by_rank[one] != by_rank[other])[both].any()
    pieces = by_rank.unflatten(1, (case.chunks, -1))[:, :, 0]
    assert case.chunks == 1 or (pieces[:, 0] != pieces[:, 1]).any()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_cuda)])
def test_formats_on_gpus(device: str) -> None:
    """All of the above in float32, by ranks that are started once."""
    cases, rounded = (
        [replace(case, dtype=torch.float32, device=device) for case in kind]
        for kind in (CASES_ON_GPUS, ROUNDED_ON_GPUS)
    )
    ranks = run_ranks(_every_case, W, cases, rounded, device=device, timeout_s=120)
    for case in cases:
        steps = [results["steps"][case] for results in ranks]
        for check in (_check_outputs, _check_gradients, _check_messages):
            check(case, steps)
        _check_broken(case, [results["broken"][case] for results in ranks])
    for case in rounded:
        _check_rounded(case, [results["rounded"][case] for results in ranks])
