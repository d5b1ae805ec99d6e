"""Formats from end to end: how far outputs and gradients are off, what was sent, and what becomes of inf and NaN."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmt_kernels.embedding.column_layout import tower_layouts
from dmt_kernels.spec import WireFormat
from tests.devices import on_cuda
from tests.embedding.payload_cases import (
    CASES,
    CASES_ON_GPUS,
    EXACT,
    MEMBER,
    PARTITION,
    ROUNDED,
    ROUNDED_ON_GPUS,
    SAMPLE_RANK,
    SAMPLES,
    STEPS,
    TABLES,
    TOPOLOGY,
    TOWER,
    B,
    Case,
    R,
    Step,
    T,
    W,
    every_case,
    ids_of,
    out_grad_of,
    tables_of,
)
from tests.ranks import run_ranks


@functools.cache
def _results(what: str, case: Case) -> list:
    return [results[what][case] for results in _all_results()]


@functools.cache
def _all_results() -> list[dict[str, dict[Case, Any]]]:
    return run_ranks(every_case, W, CASES, ROUNDED, timeout_s=200)


def _arithmetic(case: Case, sizes: Tensor) -> Tensor:
    """How far sums are off by arithmetic, given what their terms add up to in size; float64's is allowed elsewhere."""
    return sizes * (0.0 if case.dtype is torch.float64 else 2**-18)


def _by_towers(columns: Tensor) -> list[Tensor]:
    """``[W * B, D_t]`` of every tower."""
    dims = {table.name: table.dim for table in TABLES}
    return list(columns.split([sum(dims[feature] for feature in tower) for tower in PARTITION.towers], dim=1))


def _pooled(tables: dict[str, Tensor]) -> Tensor:
    """``[W * B, sum(D_t)]``: what a batch looks up."""
    return torch.cat([tables[name][ids_of(f)] for f, name in enumerate(PARTITION.features)], dim=1)


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
    outputs, errors = _expected(case, tables_of(case, False))
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
    out_grads = out_grad_of(case, False).split(case.out_widths, dim=1)
    expected, error = _expected_grads(case, out_grads)
    actual = _grads([step.updates for step in steps])
    # What is seen of a gradient is what it makes of a row.
    rows = _pooled(tables_of(case, False)).abs() + expected.abs() + error
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
    tables, rows = tables_of(case, True), torch.ones(SAMPLES, dtype=torch.bool)
    expected = torch.cat(_expected(case, tables)[0], dim=1)
    actual = torch.cat([forward.out for forward, _ in steps])
    rows[[3, 9, 16]] = False
    assert not actual[~expected.isfinite()].isfinite().any() and (~expected.isfinite()).sum() >= 3
    assert actual[rows].isfinite().all(), "only where they are"

    actual = _grads([backward.updates for _, backward in steps])
    broken = ~out_grad_of(case, True).isfinite()
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
    grad = out_grad_of(case, False)[:1].expand(SAMPLES, -1)
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
    ranks = run_ranks(every_case, W, cases, rounded, device=device, timeout_s=120)
    for case in cases:
        steps = [results["steps"][case] for results in ranks]
        for check in (_check_outputs, _check_gradients, _check_messages):
            check(case, steps)
        _check_broken(case, [results["broken"][case] for results in ranks])
    for case in rounded:
        _check_rounded(case, [results["rounded"][case] for results in ranks])
