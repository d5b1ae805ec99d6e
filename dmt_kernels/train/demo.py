"""A flat DLRM and its multi-tower twin, trained on the same data in four processes and compared."""

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.data import open_dataset
from dmt_kernels.train.output import RunFolder
from dmt_kernels.train.run import train

TOWERS, MEMBERS = 2, 2
STEPS = 400  # to aim at: a minute or two on two cores
BATCH, SMALL_BATCH = 1024, 128
MOST_EPOCHS, PATIENCE = 4, 2


def demo(data: str, out: str) -> dict[str, dict[str, Any]]:
    """Train both models, print a table and write the plot of their losses.

    Parameters
    ----------
    data : str
        As for ``train``.
    out : str
        Folder for both runs and the plot; earlier ones are replaced.

    Returns
    -------
    dict of str to dict
        Both summaries, by title.
    """
    epochs, batch_size = _effort(open_dataset(data, seed=0).rows("train"))
    flat = TrainConfig(
        data=data,
        out=str(Path(out) / "flat"),
        overwrite=True,
        exchange="flat",
        towers=TOWERS,
        members=MEMBERS,
        epochs=epochs,
        early_stop=PATIENCE,
        batch_size=batch_size,
    )
    twin = dataclasses.replace(flat, out=str(Path(out) / "dmt"), exchange="sptt", tower_module="dlrm")
    runs = {"flat DLRM": flat, "DMT DLRM": twin}
    summaries = {}
    for title, config in runs.items():
        print(f"{title}: {TOWERS * MEMBERS} processes, epochs up to {epochs}, batches of {batch_size}", flush=True)
        summaries[title] = train(config, show=False)
    plot = Path(out) / "loss.png"
    _plot(runs, plot)
    _print(summaries)
    print(f"loss curves: {plot}\nruns:        {', '.join(str(config.out) for config in runs.values())}")
    return summaries


def _effort(rows: int) -> tuple[int, int]:
    """Epochs and batch size that make about ``STEPS`` steps, whatever the size of the data."""
    epochs = min(max(1, STEPS * BATCH // max(rows, 1)), MOST_EPOCHS)
    return epochs, BATCH if rows * epochs > STEPS * BATCH // 4 else SMALL_BATCH


def _print(summaries: dict[str, dict[str, Any]]) -> None:
    any_summary = next(iter(summaries.values()))
    table = Table(title=f"{any_summary['data']}: held-out rows, {TOWERS} towers x {MEMBERS} members")
    table.add_column("model")
    for heading in ("AUC", "log loss", "ms/step", "samples/s", "bytes/step\nacross towers"):
        table.add_column(heading, justify="right")
    for title, summary in summaries.items():
        table.add_row(
            title,
            _decimals(summary["auc"]),
            _decimals(summary["logloss"]),
            f"{summary['step_ms_median']:.1f}",
            f"{summary['samples_per_s']:,.0f}",
            f"{summary['peer_bytes_per_step']:,.0f}",
        )
    if any_summary["best_auc"] is not None:
        table.add_section()
        table.add_row("best possible", _decimals(any_summary["best_auc"]))
    Console().print(table)


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _plot(runs: dict[str, TrainConfig], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="log loss")
    for color, (title, config) in enumerate(runs.items()):
        assert config.out is not None
        lines = RunFolder(config.out).read_metrics()
        for key, style, label in (("loss", "-", title), ("valid_logloss", "o", None)):
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            axes.plot(*zip(*points, strict=True), style, color=f"C{color}", label=label, alpha=0.8)
    axes.set_title("training (lines) and validation (dots)")
    axes.legend()
    figure.savefig(path, dpi=120)
