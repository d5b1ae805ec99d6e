"""Tables of results, in a form that goes into Markdown as it is; made from recorded numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bench.runner import Result, Timing

OWN = ("ours, ms", "GB/s", "GFLOP/s", "floor", "of floor")
WIDTH = 200  # of a table that is not shown in a terminal


def comparison(results: Sequence[Result], others: Sequence[str]) -> Table:
    """A row per case; times are p20, p50 and p80. ``x`` is the other's median over ours: above 1, ours is faster."""
    headings = [*OWN, *(heading for other in others for heading in (f"{other}, ms", "x"))]
    rows = [[*_own_cells(result), *_other_cells(result, others)] for result in results]
    # What no case has, such as floors of an exchange, gets no column; a peer that is not here keeps its empty one.
    shown = [i for i in range(len(headings)) if i >= len(OWN) or any(row[i] for row in rows)]
    table = Table(box=box.MARKDOWN)
    table.add_column("case", no_wrap=True)
    for i in shown:
        table.add_column(headings[i], justify="right", no_wrap=True)
    for result, row in zip(results, rows, strict=True):
        table.add_row(result.case, *(row[i] for i in shown))
    return table


def facts(values: Mapping[str, object], title: str) -> Table:
    table = Table(box=box.MARKDOWN)
    table.add_column(title)
    table.add_column("", no_wrap=True)
    for name, value in values.items():
        table.add_row(name, f"{value:.1f}" if isinstance(value, float) else str(value))
    return table


def show(*tables: Table | str, console: Console | None = None) -> None:
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH, highlight=False)
    for table in tables:
        console.print(table, soft_wrap=isinstance(table, str), markup=False)


def _own_cells(result: Result) -> list[str]:
    ours, floor = result.timings["ours"], sum(result.floor_ms.values())
    rates = [amount / (ours.p50_ms * 1e-3) * 1e-9 for amount in (result.work_bytes, result.work_flops)]
    return [
        _times(ours),
        *(f"{rate:.1f}" if rate else "" for rate in rates),
        _ms(floor) if floor else "",
        f"{100 * floor / ours.p50_ms:.0f} %" if floor else "",
    ]


def _other_cells(result: Result, others: Sequence[str]) -> list[str]:
    cells = []
    for other in others:
        timing = result.timings.get(other)
        ratio = "" if timing is None else f"{timing.p50_ms / result.timings['ours'].p50_ms:.2f}"
        cells += ["" if timing is None else _times(timing), ratio]
    return cells


def _times(timing: Timing) -> str:
    return " ".join(_ms(value) for value in (timing.p20_ms, timing.p50_ms, timing.p80_ms))


def _ms(value: float) -> str:
    """Three digits that count."""
    return (
        f"{value:.4f}"
        if value < 0.1
        else f"{value:.3f}"
        if value < 1
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
    )
