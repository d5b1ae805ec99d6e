"""Towers of a data set's features, chosen once and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from dmt_kernels.planner import BY_AFFINITY, STRATEGIES, group_features, partition_features
from dmt_kernels.train.affinity import DEFAULT_AFFINITY, find_affinity
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.data import mean_lookups
from dmt_kernels.train.flat_run import STEPS, flat_setup, train_flat
from dmt_kernels.train.partition import with_importance


def seed_of(strategy: str, data: str, seed: int) -> int:
    """The seed of a run's towers: its own where they are random, or the log itself is another one; else always 0."""
    return seed if strategy == "random" or data.startswith("synthetic") else 0


def choose_towers(strategy: str, config: TrainConfig, seed: int, folder: Path) -> str:
    """What ``--partition`` of a run of `config` is: a file in `folder`, made if it is not there."""
    assert config.towers is not None
    plain = TrainConfig(
        data=config.data,
        tables=config.tables,
        hash_rows=config.hash_rows,
        embedding_dim=config.embedding_dim,
        steps=STEPS,
        seed=seed,
    )
    path = folder / f"{strategy}-{config.towers}-{seed}-{_digest(plain)}.json"
    if path.exists():
        return str(path)
    setup = flat_setup(plain)
    tables, run = setup.plan.tables, train_flat(setup)
    if strategy in STRATEGIES:
        found = partition_features(tables, config.towers, strategy)
    else:
        matrix = find_affinity(setup, DEFAULT_AFFINITY, run) if strategy in BY_AFFINITY else None
        lookups = mean_lookups(setup.dataset)
        found = group_features(tables, config.towers, strategy, affinity=matrix, lookups=lookups, seed=seed).partition
    unfinished = path.with_suffix(f".{os.getpid()}")  # another run may be at the same towers
    with_importance(found, setup, run).save(unfinished)
    unfinished.rename(path)
    return str(path)


def _digest(plain: TrainConfig) -> str:
    """Of all that towers depend on besides what their file's name says: a folder may serve several benches."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(plain), sort_keys=True).encode()).hexdigest()[:12]
