"""The ``partition`` command: towers of a data set's features, their loads, and pictures of why."""

import contextlib
import ctypes
import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dmt_kernels.planner import BY_AFFINITY, DEFAULT_SECONDS, DEFAULT_SLACK, Grouping, check_grouping, group_features
from dmt_kernels.spec import InputError, Partition
from dmt_kernels.train.affinity import DEFAULT_AFFINITY, LEARNED, check_affinity_kind, find_affinity
from dmt_kernels.train.assemble import Setup
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.data import mean_lookups
from dmt_kernels.train.flat_run import FlatRun, flat_setup, train_flat
from dmt_kernels.train.importance import permutation_importance
from dmt_kernels.train.partition_report import draw, show_importance, show_loads


def partition(
    config: TrainConfig,
    out: str,
    towers: int,
    strategy: str,
    *,
    affinity: str = DEFAULT_AFFINITY,
    slack: dict[str, float] | float = DEFAULT_SLACK,
    pins: dict[str, int] | None = None,
    importance: bool = True,
    seconds: float = DEFAULT_SECONDS,
) -> Grouping:
    """Choose towers, write them to ``out`` and print their loads; pictures go beside it.

    Parameters
    ----------
    config : TrainConfig
        Data, tables, and how long and with what seed to train for the affinity and the importance.
    out : str
        JSON file that ``train --partition`` reads. Beside it ``_affinity.png`` shows the affinity, where one was asked
        for or something was trained, and ``_layout.png`` the layout of ``coherent`` and ``diverse``.
    towers, strategy, slack, pins, seconds
        See :func:`dmt_kernels.planner.group_features`.
    affinity : str
        See :func:`dmt_kernels.train.affinity.find_affinity`.
    importance : bool
        Find out what every feature is worth, too (:func:`dmt_kernels.train.importance.permutation_importance`): towers
        share their columns out by it. Without it, nothing is trained for an affinity that needs no training.

    Raises
    ------
    InputError
        Naming what is wrong with options or data.
    """
    path = Path(out)
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"--out {out} is a folder, or in one that does not exist or cannot be written to")
    if not seconds > 0:
        raise InputError(f"--seconds {seconds:g} is no time to solve in")
    setup = flat_setup(config)
    tables = setup.plan.tables
    lookups = mean_lookups(setup.dataset)
    check_grouping(tables, towers, strategy, lookups, slack, pins)  # before the training
    check_affinity_kind(affinity)
    matrix = None if affinity in LEARNED else find_affinity(setup, affinity, None)
    run = train_flat(setup) if importance or (strategy in BY_AFFINITY and matrix is None) else None
    if matrix is None and run is not None:
        matrix = find_affinity(setup, affinity, run)
    with silence():
        grouping = group_features(
            tables,
            towers,
            strategy,
            affinity=matrix,
            lookups=lookups,
            slack=slack,
            pins=pins,
            seed=config.seed,
            seconds=seconds,
        )
    if run is not None and importance:
        grouping = dataclasses.replace(grouping, partition=with_importance(grouping.partition, setup, run))
    grouping.partition.save(path)
    show_loads(grouping, tables)
    show_importance(grouping.partition, tables)
    for picture in draw(grouping, matrix, setup.plan.partition.features, path):
        print(f"picture: {picture}")
    print(f"towers:  {path}")
    return grouping


def with_importance(partition: Partition, setup: Setup, run: FlatRun) -> Partition:
    """Add what features are worth, by the run of that setup, to towers.

    Raises
    ------
    InputError
        If the run has diverged.
    """
    costs = permutation_importance(run, setup.config.seed)
    if not all(map(math.isfinite, costs)):
        raise InputError(
            "the short flat run diverged, so nothing is known of what features are worth (--no-importance)"
        )
    return dataclasses.replace(partition, importance=dict(zip(setup.plan.partition.features, costs, strict=True)))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep what HiGHS prints, whatever it is told, off standard output, if there is one.

    It is the whole process's, other threads' with it: for a command, not for a library.
    """
    with contextlib.ExitStack() as undo:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
            sys.stdout.flush()
            kept = os.fdopen(os.dup(1), "wb")
            undo.enter_context(kept)
            nowhere = undo.enter_context(open(os.devnull, "wb"))
            libc = ctypes.CDLL(None)
            libc.fflush(None)
            os.dup2(nowhere.fileno(), 1)
            undo.callback(os.dup2, kept.fileno(), 1)
            undo.callback(libc.fflush, None)
        yield
