"""What the ``partition`` command shows: loads of towers, the affinity ordered by tower, and the layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from dmt_kernels.planner import Grouping, Load
from dmt_kernels.spec import Partition, Table, tables_by_feature
from dmt_kernels.towers import share_columns

_NAMED = 60  # features of a picture; more names do not fit


def show_loads(grouping: Grouping, tables: Sequence[Table]) -> None:
    """Print every tower's loads, absolute and relative to the mean, and what limits were broken and why."""
    count = len(grouping.partition.towers)
    shown = RichTable(title=f"loads of {count} towers (relative to their mean)", title_justify="left")
    for heading in ("tower", "features", "bytes", "lookups", "TM FLOPs"):
        shown.add_column(heading, justify="right")
    sums = {load.name: load.sums(grouping.table_towers, count) for load in grouping.loads}
    sums["flops"] = sums["flops"] ** 2  # a linear module at any one compression
    for t in range(count):
        cells = [
            f"{sums['features'][t]:,.0f}",
            f"{sums['bytes'][t]:,.0f} ({_relative(sums['bytes'], t)})",
            f"{sums['lookups'][t]:,.2f} ({_relative(sums['lookups'], t)})",
            _relative(sums["flops"], t),
        ]
        shown.add_row(str(t), *cells)
    Console().print(shown)
    for line in remarks(grouping, tables):
        print(line)


def show_importance(partition: Partition, tables: Sequence[Table]) -> None:
    """Print what the most important features are worth, if that is known, and how unequal it makes towers."""
    if partition.importance is None:
        return
    ranked = sorted(partition.importance.items(), key=lambda item: item[1], reverse=True)
    shown = ", ".join(f"{name} {cost:.4f}" for name, cost in ranked[:8])
    print(f"importance (log loss that shuffling costs): {shown}{', ...' if len(ranked) > 8 else ''}")
    owners = tables_by_feature(tables)
    dims = [[owners[feature].dim for feature in tower] for tower in partition.towers]
    rows = [[owners[feature].rows for feature in tower] for tower in partition.towers]
    worth = [[partition.importance[feature] for feature in tower] for tower in partition.towers]
    widest = {}
    for compression in (2, 4):
        widths = [sum(columns) for columns in share_columns(dims, rows, worth, compression)]
        widest[compression] = max(widths) * len(widths) / sum(widths)
    print(
        f"columns shared out by it: the widest tower sends {widest[2]:.2f} times the mean at compression 2, "
        f"{widest[4]:.2f} at 4; with --tower-columns within as many as the TM FLOPs above are of"
    )


def remarks(grouping: Grouping, tables: Sequence[Table]) -> list[str]:
    """Say what could not be kept, by how much, and how well the solver did."""
    lines: list[str] = []
    clustering, count = grouping.clustering, len(grouping.partition.towers)
    if clustering is None:
        for load in grouping.loads:
            if (part := load.excess(grouping.table_towers, count)) > 1e-6:
                lines.append(
                    f"{load.name}: outside the slack by {part:.2%} of {_mean(load)}, which this rule does not heed"
                )
        return lines
    for load in grouping.loads:
        if over := _above(load, count):
            named = ", ".join(f"{tables[table].name!r} by {part:.0%}" for table, part in over.items())
            lines.append(
                f"{load.name}: alone above what a tower may have: {named}; "
                "a tower holds a table whole, so its members share it (--split columns or rows)"
            )
    broken = [(load, part) for load, part in zip(grouping.loads, clustering.excess, strict=True) if part > 0]
    for load, part in broken:
        lines.append(f"{load.name}: the slack is exceeded by {part:.2%} of {_mean(load)}")
    if broken:
        lines.append(
            f"the sum of excesses is {clustering.excess.sum():.2%}, and cannot be below {clustering.excess_bound:.2%}"
        )
    found = clustering.assignment
    lines.append(
        f"distance to the centres {found.cost:.4g}, at least {found.bound:.4g}: proven to {max(found.gap, 0):.2%}"
    )
    return lines


def _above(load: Load, count: int) -> dict[int, float]:
    """By how much of it tables exceed what a tower may have, of those that do alone, largest first."""
    most = load.high / load.mean * load.weights.sum() / count if load.mean else np.inf
    power = 2 if load.name == "flops" else 1
    over = {table: float((load.weights[table] / most) ** power - 1) for table in load.oversized}
    return {table: over[table] for table in sorted(over, key=over.__getitem__, reverse=True) if over[table] > 0}


def _mean(load: Load) -> str:
    """What parts of a load are parts of."""
    whose = " of the other tables" if load.oversized else ""
    return f"the mean width{whose}, with whose square they grow" if load.name == "flops" else f"the mean{whose}"


def draw(grouping: Grouping, affinity: np.ndarray | None, features: Sequence[str], path: Path) -> list[Path]:
    """Write a heat map of the affinity, ordered by tower, and a scatter of the layout, as far as they are known.

    Returns their paths. Pictures of earlier towers of that path are removed.
    """
    heat, scatter = (path.with_name(f"{path.stem}_{kind}.png") for kind in ("affinity", "layout"))
    for picture in (heat, scatter):
        picture.unlink(missing_ok=True)
    if affinity is not None:
        _draw_affinity(grouping, affinity, features, heat)
    if grouping.points is not None:
        _draw_layout(grouping, features, scatter)
    return [picture for picture in (heat, scatter) if picture.exists()]


def _draw_affinity(grouping: Grouping, affinity: np.ndarray, features: Sequence[str], path: Path) -> None:
    towers, position = grouping.partition.towers, {name: f for f, name in enumerate(features)}
    order = [position[name] for tower in towers for name in tower]
    edges = np.cumsum([len(tower) for tower in towers])[:-1] - 0.5

    figure, axes = _figure((8, 7))
    shown = affinity[np.ix_(order, order)].copy()
    np.fill_diagonal(shown, np.nan)
    figure.colorbar(axes.imshow(shown, cmap="viridis"), label="affinity")
    for edge in edges:
        axes.axhline(edge, color="white", linewidth=0.8)
        axes.axvline(edge, color="white", linewidth=0.8)
    if len(order) <= _NAMED:
        names = [features[f] for f in order]
        axes.set_xticks(range(len(order)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(order)), names, fontsize=6)
    axes.set_title("affinity of features, ordered by tower")
    figure.savefig(path, dpi=120)


def _draw_layout(grouping: Grouping, features: Sequence[str], path: Path) -> None:
    towers, position = grouping.partition.towers, {name: f for f, name in enumerate(features)}
    assert grouping.points is not None
    centred = grouping.points - grouping.points.mean(0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T  # the two widest directions
    plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    figure, axes = _figure((7, 6))
    for t, tower in enumerate(towers):
        mine = [position[name] for name in tower]
        axes.scatter(*plane[mine].T, color=f"C{t % 10}", label=str(t) if len(towers) <= 10 else None)
        for f in mine if len(features) <= _NAMED else ():
            axes.annotate(features[f], plane[f], fontsize=6)
    axes.set_title(f"layout of features (stress {grouping.stress:.3f}), two of {grouping.points.shape[1]} dimensions")
    if len(towers) <= 10:
        axes.legend(title="tower")
    figure.savefig(path, dpi=120)


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _relative(sums: np.ndarray, tower: int) -> str:
    return f"{sums[tower] / sums.mean():.3f}" if sums.any() else "-"
