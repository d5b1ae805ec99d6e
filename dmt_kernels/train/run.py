"""Train or evaluate from one process: check everything, start the ranks, report."""

import logging
import os
import platform
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dmt_kernels.spec import InputError
from dmt_kernels.train.assemble import choose_device
from dmt_kernels.train.config import TrainConfig, resolve_topology
from dmt_kernels.train.evaluate import evaluate_rank, saved_config, set_up_as_trained
from dmt_kernels.train.launch import launched, run_ranks, speaks
from dmt_kernels.train.loop import prepare, train_rank
from dmt_kernels.train.output import RunFolder

log = logging.getLogger("dmt_kernels.train")


def train(config: TrainConfig, *, show: bool = True) -> dict[str, Any]:
    """Train on as many ranks as the options, or torchrun, say.

    Parameters
    ----------
    config : TrainConfig
        The options.
    show : bool
        Whether to print the summary as a table.

    Returns
    -------
    dict
        What ``summary.json`` holds.

    Raises
    ------
    InputError
        If options or data are wrong; nothing has then been started or written.
    RankFailed
        With the failing rank's traceback; every process has then ended.
    """
    config = _with_topology(config)
    if config.resume and config.out is not None and (summary := RunFolder(config.out).read_summary()) is not None:
        if show and speaks():
            _show(summary, f"trained before: {config.out}")
        return summary
    if speaks() and (idle := config.idle_options()):
        log.warning("%s: nothing to act on without --tower-module", ", ".join(idle))
    if not launched() and not config.local:  # a rank, or this very process, does this for itself
        prepare(config)
    summary = _on_ranks(config, train_rank, config)
    if show and speaks():
        _show(summary, "trained" if config.out is None else f"trained: {config.out}")
    return summary


def evaluate(folder: str, split: str | None, **changes: Any) -> dict[str, Any]:
    """Score the model of a finished run, on the ranks it was trained on or, with ``local``, in one process.

    Returns
    -------
    dict
        ``split``, ``auc``, ``logloss`` and ``samples``.

    Raises
    ------
    InputError, RankFailed
        As :func:`train`.
    """
    config = _with_topology(saved_config(folder, **changes))
    if not launched() and not config.local:
        set_up_as_trained(config, folder, split)
    scores = _on_ranks(config, evaluate_rank, config, folder, split)
    if speaks():
        _show(scores, f"evaluated: {folder}")
    return scores


def _with_topology(config: TrainConfig) -> TrainConfig:
    world = int(os.environ["WORLD_SIZE"]) if launched() else None
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or None  # other launchers may not say
    return resolve_topology(config, world, local_world)


def _on_ranks(config: TrainConfig, work: Callable[..., Any], *args: Any) -> dict[str, Any]:
    assert config.towers is not None and config.members is not None
    if config.amp and speaks() and choose_device(config).type == "cpu" and not _multiplies_in_bfloat16():
        log.warning("--amp: this CPU does not multiply in bfloat16; steps may take many times as long as without")
    if config.local:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        result = work(*args)
    else:
        result = run_ranks(work, *args, world=config.towers * config.members, threads=config.threads)
    if isinstance(result, InputError):
        raise result
    return result


def _multiplies_in_bfloat16() -> bool:
    """Whether torch has more for it than element by element: not on x86 below AVX-512; of other CPUs it is assumed."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not is_x86 or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "DEFAULT", "NO AVX")


def _show(figures: dict[str, Any], title: str) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in figures.items():
        if value is not None:
            table.add_row(name, str(value) if isinstance(value, str | bool) else _digits(value))
    Console().print(table)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
