"""Tables and a plot of what is finished, from recorded numbers alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.quality.provenance import made_otherwise
from bench.quality.records import Record
from bench.quality.search import FAILED
from bench.quality.statistics import Estimate, estimate
from bench.quality.study import Study
from bench.report import show

PLOT, TABLES = "differences.png", "tables.md"


def tables(study: Study) -> list[Table | str]:
    """What was chosen, the flat models, the differences, what payloads cost, and what the choice of towers gains."""
    parts = [_chosen(study), _flat(study), _differences(study), _payloads(study)]
    if (partitions := _partitions(study)).row_count:
        parts.append(partitions)
    return [line for part in parts for line in ("", part)] + ["", made_otherwise(study.finished())]


def write(study: Study, folder: Path) -> None:
    """Write the tables as Markdown, and the plot."""
    with (folder / TABLES).open("w") as file:
        show(*tables(study), console=Console(file=file))
    _plot(study, folder / PLOT)


def _chosen(study: Study) -> Table:
    search, epochs = study.plan.search, study.plan.trial_epochs
    heading = "chosen of the trials" + (f", {epochs} epochs at most" if epochs else "")
    runs = "1 run" if search.seeds == 1 else f"mean of {search.seeds} runs"
    table = _table(heading, f"valid AUC, {runs}", "of the defaults, 1 run", "options")
    for cell in study.plan.sources:
        course, defaults = study.course(cell), study.trial(cell, {}, 0)
        if course.best is not None and defaults is not None:
            options = ", ".join(f"{name} {value}" for name, value in course.best.items()) or "the defaults"
            best = (f"{course.mean:.4f}", options) if course.mean > FAILED else ("-", "-")
            shown = "failed" if "failed" in defaults else f"{defaults['valid_auc']:.4f}"
            table.add_row(str(cell), best[0], shown, best[1])
    return table


def _flat(study: Study) -> Table:
    known = _best_possible(study.runs(cell).values() for cell in study.plan.twins)
    table = _table("flat", "seeds", "test AUC", "one pass", "epochs", "s", *(["to the best"] if known else []))
    for cell in study.plan.twins:
        runs = list(study.runs(cell).values())
        if runs:
            cells = [
                _interval(estimate([run["auc"] for run in runs]), signed=False),
                f"{mean(map(_one_pass, runs)):.4f}",
            ]
            cells += [f"{mean(run['best_epoch'] for run in runs):.1f}", f"{mean(map(_seconds, runs)):.0f}"]
            table.add_row(str(cell), str(len(runs)), *cells, *_distance(runs, known))
    return table


def _differences(study: Study) -> Table:
    """``to flat's best``: epochs and training time of the runs whose validation AUC got there, over the twin's own."""
    known = _best_possible(study.runs(cell).values() for cell in study.plan.cells)
    headings = ["compression", "seeds", "test AUC - flat", "one pass", "epochs - flat", "reach flat's best"]
    table = _table("multi-tower", *headings, "epochs to it", "time to it", *(["to the best"] if known else []))
    for cell in study.plan.cells:
        if pairs := study.pairs(cell, cell.twin):
            runs = [run for run, _ in pairs]
            table.add_row(
                str(cell),
                f"{runs[0]['compression']:.2f}",
                str(len(pairs)),
                _interval(study.difference(cell)),
                f"{mean(_one_pass(run) - _one_pass(flat) for run, flat in pairs):+.4f}",
                f"{mean(run['best_epoch'] - flat['best_epoch'] for run, flat in pairs):+.1f}",
                *_catching_up(pairs),
                *_distance(runs, known),
            )
    return table


def _catching_up(pairs: Sequence[tuple[Record, Record]]) -> list[str]:
    epochs, times = [], []
    for run, flat in pairs:
        reached = first_epoch_at(run["curve"], flat["valid_auc"])
        if reached is not None:
            epochs.append(reached / flat["best_epoch"])
            times.append(run["curve"][reached - 1]["seconds"] / _seconds(flat))
    reach = f"{len(epochs)} of {len(pairs)}"
    return [reach, *(f"x {median(ratios):.2f}" if ratios else "-" for ratios in (epochs, times))]


def first_epoch_at(curve: Sequence[dict[str, Any]], auc: float) -> int | None:
    """The first epoch, counted from 1, with this validation AUC; None if there is none."""
    return next((epoch for epoch, point in enumerate(curve, 1) if point["valid"] >= auc), None)


def _payloads(study: Study) -> Table:
    """Losses of AUC where the trained weights are scored with a payload, and where they were trained with it."""
    table = _table("payload of peer rows", "runs", "test AUC - fp32", "worst")
    for payload in study.plan.payloads:
        for model in study.plan.models:
            cells = [cell for cell in study.plan.cells if cell.model == model and cell.payload == "fp32"]
            runs = [run for cell in cells for run in study.runs(cell).values()]
            losses = [run["payloads"][payload] - run["auc"] for run in runs if payload in run["payloads"]]
            if runs:
                count = str(len(runs)) if len(losses) == len(runs) else f"{len(losses)} of {len(runs)}"
                shown = [_interval(estimate(losses), digits=5), f"{min(losses):+.5f}"] if losses else ["-", "-"]
                table.add_row(f"{model}, scored with {payload}", count, *shown)
    for cell in study.plan.cells:
        exact = dataclasses.replace(cell, payload="fp32")
        losses = [run["auc"] - other["auc"] for run, other in study.pairs(cell, exact)]
        if cell != exact and losses:
            interval = _interval(estimate(losses))
            table.add_row(f"{exact}, trained with {cell.payload}", str(len(losses)), interval, f"{min(losses):+.4f}")
    return table


def _partitions(study: Study) -> Table:
    """Towers of the first partition less others of the same seeds."""
    first = study.plan.cells[0].partition
    table = _table("towers", "seeds", f"test AUC of {first} ones - theirs")
    for cell in study.plan.cells:
        pairs = study.pairs(dataclasses.replace(cell, partition=first), cell)
        if cell.partition != first and pairs:
            gained = estimate([run["auc"] - other["auc"] for run, other in pairs])
            table.add_row(str(cell), str(len(pairs)), _interval(gained))
    return table


def _plot(study: Study, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure

    known = [(cell, study.difference(cell)) for cell in study.plan.cells]
    shown = [(cell, difference) for cell, difference in known if difference.count]
    figure = Figure(figsize=(8, 1.5 + 0.25 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        xlabel="test AUC - flat, mean and 95 % interval", title=study.plan.data.rpartition("/")[2]
    )
    for i, (cell, difference) in enumerate(shown):
        width = difference.half_width if difference.count > 1 else 0.0
        color = f"C{study.plan.models.index(cell.model)}"
        axes.errorbar(difference.mean, i, xerr=width, fmt="o", color=color, capsize=2, markersize=4)
    axes.set_yticks(range(len(shown)), [str(cell) for cell, _ in shown], fontsize=7)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def _table(first: str, *headings: str) -> Table:
    table = Table(box=box.MARKDOWN)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _interval(value: Estimate, *, signed: bool = True, digits: int = 4) -> str:
    width = f" ± {value.half_width:.{digits}f}" if value.count > 1 else ""
    return f"{value.mean:{'+' if signed else ''}.{digits}f}{width}"


def _one_pass(run: Record) -> float:
    return run["curve"][0]["test"]


def _seconds(run: Record) -> float:
    """Training time to the best epoch."""
    return run["curve"][run["best_epoch"] - 1]["seconds"]


def _best_possible(runs: Iterable[Iterable[Record]]) -> bool:
    return any(run["best_auc"] is not None for some in runs for run in some)


def _distance(runs: Sequence[Record], known: bool) -> list[str]:
    return [f"{mean(run['best_auc'] - run['auc'] for run in runs):.4f}"] if known else []
