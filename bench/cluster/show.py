"""Tables and a plot of a recorded run; from its numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from bench.cluster.floor import Wire, least_bytes, payload_seconds, wire_seconds
from bench.cluster.network import show_rate
from bench.cluster.problem import Problem
from bench.cluster.variants import RATIOS, VARIANTS, Variant, twin_of

ROWS = ("step, ms", "bytes, MB", "of least", "wire, ms", "floor, ms", "x floor", "exposed")


def tables(record: dict[str, Any]) -> list[Table | str]:
    """One table per rate, then the ratios of all rates."""
    problem, phases = Problem(**record["problem"]), record["phases"]
    shown: list[Table | str] = []
    for phase in phases:
        shown += ["", _title(problem, phase), _rate_table(record, phase)]
        shown += [f"{name}: {chunks} chosen" for name, chunks in phase["chunks"].items()]
    return [*shown, "", "the second's step over the first's: above 1, the first is faster", _ratios(phases)]


def floor_ms(record: dict[str, Any], variant: Variant, phase: dict[str, Any]) -> dict[str, float]:
    """What a step cannot be faster than: the wires, itself without wires, or payload and over-arch in turn."""
    wire, unshaped = least(record, variant), record["phases"][0]
    twin = twin_of(variant, VARIANTS).name
    return {
        "wire": 1e3 * wire_seconds(wire, phase["rate"], phase["tower_rate"]),
        "compute": unshaped["ms"][variant.name][1],
        "payload and over-arch": 1e3 * payload_seconds(wire, phase["rate"]) + unshaped["over_arch_ms"][twin],
    }


def least(record: dict[str, Any], variant: Variant) -> Wire:
    problem = Problem(**record["problem"])
    over_arch, tower_module = record["parameters"][twin_of(variant, VARIANTS).name]
    return least_bytes(
        problem,
        variant.road,
        compression=problem.compression if variant.tower_module else 1,
        payload=variant.payload,
        tower_payload=variant.tower_payload,
        over_arch=over_arch,
        tower_module=tower_module,
        slices=variant.slices,
    )


def plot(record: dict[str, Any], path: Path) -> None:
    """Step times by rate, with a mark where the floor is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    phases, ran = record["phases"], _ran(record)
    figure, axes = pyplot.subplots(1, len(phases), figsize=(4 * len(phases), 0.35 * len(ran) + 1.5), sharey=True)
    for axis, phase in zip(axes, phases, strict=True):
        colors = ["tab:blue" if variant.peer is None else "tab:gray" for variant in ran]
        axis.barh([v.name for v in ran], [phase["ms"][v.name][1] for v in ran], color=colors)
        if phase["rate"] is not None:
            floors = [max(floor_ms(record, variant, phase).values()) for variant in ran]
            axis.plot(floors, range(len(ran)), "k|", markersize=10, label="floor")
            axis.legend()
        axis.set_title(show_rate(phase["rate"]))
        axis.set_xlabel("step, ms")
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _ran(record: dict[str, Any]) -> list[Variant]:
    return [variant for variant in VARIANTS if variant.name in record["phases"][0]["ms"]]


def _title(problem: Problem, phase: dict[str, Any]) -> str:
    parts = [f"{problem.hosts} hosts x {problem.members}", show_rate(phase["rate"])]
    if phase["rate"] is not None:
        parts.append(f"a timed transfer ran at {show_rate(round(phase['verified_rate'], -5))}")
    if phase["tower_rate"] is not None:
        parts.append(f"inner links {show_rate(phase['tower_rate'])}")
        if "verified_tower_rate" in phase:
            parts.append(f"there it ran at {show_rate(round(phase['verified_tower_rate'], -5))}")
    return ", ".join([*parts, f"{phase['rounds']} rounds"])


def _rate_table(record: dict[str, Any], phase: dict[str, Any]) -> Table:
    shaped = phase["rate"] is not None
    table = Table(box=box.MARKDOWN)
    table.add_column("contender", no_wrap=True)
    for heading in ROWS if shaped else ROWS[:1]:
        table.add_column(heading, justify="right", no_wrap=True)
    for variant in _ran(record):
        name, times = variant.name, phase["ms"][variant.name]
        cells = [" ".join(f"{ms:.1f}" for ms in times)]
        if shaped:
            floors, wire = floor_ms(record, variant, phase), least(record, variant)
            sent, alone = max(phase["sent_bytes"][name]), record["phases"][0]["ms"][name][1]
            floor = max(floors.values())
            cells += [
                f"{sent / 1e6:.2f}",
                f"{sent / wire.peer:.3f}",
                f"{floors['wire']:.1f}",
                f"{floor:.1f}",
                f"{times[1] / floor:.2f}",
                f"{max(0.0, 100 * (times[1] - alone) / times[1]):.0f} %",
            ]
        table.add_row(name, *cells)
    return table


def _ratios(phases: list[dict[str, Any]]) -> Table:
    table = Table(box=box.MARKDOWN)
    table.add_column("first over second", no_wrap=True)
    for phase in phases:
        table.add_column(show_rate(phase["rate"]), justify="right", no_wrap=True)
    for first, second in RATIOS:
        if all(name in phases[0]["ms"] for name in (first, second)):
            ratios = [phase["ms"][second][1] / phase["ms"][first][1] for phase in phases]
            table.add_row(f"{first} over {second}", *(f"{ratio:.2f}" for ratio in ratios))
    return table
