"""How well, how evenly and how fast features are put into towers: the tables of docs/trials.md, section Partitioner.

`python -m bench.partitioner recovery --groups 4 6 8 | large --seed 0 | members`
"""

import argparse
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from dmt_kernels.planner import (
    Grouping,
    alignment,
    group_features,
    mean_cosine,
    mutual_information,
    partition_features,
    place,
)
from dmt_kernels.planner.placement import shard_weights
from dmt_kernels.spec import Table, Topology
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.data import SyntheticDataset, mean_lookups, sample_ids
from dmt_kernels.train.flat_run import flat_setup, train_flat
from dmt_kernels.train.partition import silence

FEATURES, SEEDS, ROWS = 26, 5, 200_000
COUNTS_ALONE = {"bytes": np.inf, "lookups": np.inf, "flops": np.inf}


@dataclasses.dataclass(frozen=True)
class Log:
    """A planted log: its tables and lookups, the group of every feature, and affinities by name."""

    tables: tuple[Table, ...]
    lookups: dict[str, float]
    planted: list[int]
    affinities: dict[str, np.ndarray]


def recovery(steps: int, numbers: list[int]) -> None:
    """Planted groups as near to equal as 26 allows: adjusted Rand index by affinity, and loads under all limits."""
    print(f"{steps} steps; adjusted Rand index with counts limited, by affinity; then all limits, 10 % slack")
    began = time.perf_counter()
    for groups in numbers:
        scores: dict[str, list[float]] = {}
        for seed in range(SEEDS):
            log = _log(groups, steps, seed)
            for name, affinity in log.affinities.items():
                found = _group(
                    log.tables, groups, affinity=affinity, lookups=log.lookups, slack=COUNTS_ALONE, seed=seed
                )
                scores.setdefault(name, []).append(adjusted_rand_score(log.planted, found.table_towers))
            affinity = log.affinities["alignment"]
            limited = _group(log.tables, groups, affinity=affinity, lookups=log.lookups, seed=seed)
            indices = ", ".join(f"{name} {values[-1]:.3f}" for name, values in scores.items())
            took = time.perf_counter() - began
            print(f"{groups} groups, seed {seed} ({took:.0f} s): {indices}; {_limits(limited, groups)}", flush=True)
        least = ", ".join(f"{name} {min(values):.3f}" for name, values in scores.items())
        print(f"{groups} groups, least: {least}", flush=True)


def _group(*arguments: Any, **options: Any) -> Grouping:
    with silence():
        return group_features(*arguments, **options)


def _log(groups: int, steps: int, seed: int) -> Log:
    sizes = [FEATURES // groups + (g < FEATURES % groups) for g in range(groups)]
    dataset = SyntheticDataset(ROWS, seed, sizes)
    config = TrainConfig(data=f"synthetic:{ROWS}", steps=steps, seed=seed, exchange="flat")
    setup = dataclasses.replace(flat_setup(config), dataset=dataset)
    features, dims = setup.plan.partition.features, setup.plan.tower_dims(0)
    ids, lookups = sample_ids(dataset, features)
    pooled = train_flat(setup).pooled
    affinities = {
        "alignment": alignment(pooled, dims),
        "cosine": mean_cosine(pooled, dims),
        "ids": mutual_information(ids),
    }
    planted = [g for f in features for g, names in enumerate(dataset.planted_groups) if f in names]
    return Log(setup.plan.tables, lookups, planted, affinities)


def large(seed: int, features: int = 1000, towers: int = 64) -> None:
    """Random planted affinities of many features, with equal and unequal tables."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(features) % towers)
    affinity = np.where(group[:, None] == group, 0.4, 0.03) + 0.05 * np.abs(rng.normal(size=(features, features)))
    affinity = (affinity + affinity.T) / 2
    cases: dict[str, tuple[list[Table], Mapping[str, float]]] = {
        "equal tables": (_tables(np.full(features, 100)), {}),
        "24 to 64,000 rows, 1 to 5 ids": _unequal(rng, features),
    }
    for name, (tables, lookups) in cases.items():
        began = time.perf_counter()
        found = _group(tables, towers, affinity=affinity, lookups=lookups)
        took = time.perf_counter() - began
        score = adjusted_rand_score(group, found.table_towers)
        print(
            f"{features} features, {towers} towers, {name}: {took:.0f} s, Rand {score:.3f}, {_limits(found, towers)}",
            flush=True,
        )


def members() -> None:
    """Fullest member over the mean of its tower, worst tower, of bytes and of values looked up: tables kept whole."""
    dataset = SyntheticDataset(ROWS, 0)
    synthetic = [Table(f.name, f.rows, 16, (f.name,)) for f in dataset.features]
    tables, lookups = _unequal(np.random.default_rng(0), 200)
    cases = {
        "planted log, 26 tables": (synthetic, mean_lookups(dataset), ((2, 2), (2, 4), (4, 2))),
        "200 tables of 24 to 64,000 rows, 1 to 5 ids": (tables, lookups, ((1, 8), (4, 4), (8, 8))),
    }
    for name, (tables, lookups, shapes) in cases.items():
        for towers, count in shapes:
            partition = partition_features(tables, towers)
            plan = place(tables, partition, Topology(towers, count), lookups=lookups)
            held = np.zeros((2, towers, count))
            for shard in plan.shards:
                ids = sum(lookups[f] for f in shard.table.features)
                held[:, shard.tower, shard.member] += shard_weights(shard, ids)
            worst = (held.max(2) / held.mean(2)).max(1)
            print(f"{name}, {towers} towers of {count}: bytes {worst[0]:.2f}, lookups {worst[1]:.2f}")


def _unequal(rng: np.random.Generator, features: int) -> tuple[list[Table], dict[str, float]]:
    """Tables of 24 to 64,000 rows, evenly by their logarithm, with 1 to 5 ids."""
    rows = np.exp(rng.uniform(np.log(24), np.log(64_000), features)).astype(int)
    ids = rng.choice([1, 1, 1, 1, 2, 5], features)
    return _tables(rows), {f"f{i}": float(count) for i, count in enumerate(ids)}


def _tables(rows: np.ndarray) -> list[Table]:
    return [Table(f"t{i}", int(count), 16, (f"f{i}",)) for i, count in enumerate(rows)]


def _limits(found: Grouping, towers: int) -> str:
    assert found.clustering is not None
    gap = found.clustering.assignment.gap
    worst = {load.name: load.excess(found.table_towers, towers) for load in found.loads}
    over = {name: f"{part:.2%}" for name, part in worst.items() if part > 1e-5}
    excess = f"{found.clustering.excess.sum():.2%} (bound {found.clustering.excess_bound:.2%})"
    return f"gap {max(gap, 0):.2%}, excess {excess}" + (f": {over}" if over else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=("recovery", "large", "members"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 6, 8])
    parser.add_argument("--seed", type=int, default=0, help="of the many features")
    arguments = parser.parse_args()
    if arguments.table == "recovery":
        recovery(arguments.steps, arguments.groups)
    elif arguments.table == "large":
        large(arguments.seed)
    else:
        members()
