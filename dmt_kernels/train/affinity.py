"""Affinities of a data set's features: from a short flat run, or from the ids."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from dmt_kernels.planner import alignment, load_affinity, mean_cosine, mutual_information
from dmt_kernels.spec import InputError
from dmt_kernels.train.assemble import Setup, build_model, make_loader, set_up
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.data import SAMPLE_ROWS, sample_ids
from dmt_kernels.train.step import TrainStep

AFFINITIES = ("alignment", "cosine", "ids")


def flat_setup(config: TrainConfig) -> Setup:
    """Set up the flat twin of a run in this one process, features in the order of the tables."""
    flat = dataclasses.replace(
        config, exchange="flat", tower_module="none", local=True, towers=1, members=1, partition="contiguous"
    )
    return set_up(flat)


def learn_embeddings(setup: Setup) -> torch.Tensor:
    """Train for ``config.steps`` and return the pooled embeddings of a sample of rows, ``[n, sum of dims]``.

    The sample is of the validation split, where there is one.
    """
    model = build_model(setup, None)
    device = next(model.parameters()).device
    train_step = TrainStep(model, None, **setup.config.dense_training())
    steps, epoch = setup.config.steps or 0, 0
    loader = make_loader(setup, "train", None, device, shuffle=True)
    while steps > 0:
        loader.set_epoch(epoch)
        for batch, _ in zip(loader, range(steps), strict=False):
            train_step(batch)
        steps, epoch = steps - len(loader), epoch + 1
    split = "valid" if setup.dataset.rows("valid") else "train"
    pooled, rows = [], 0
    with torch.no_grad():
        for batch in make_loader(setup, split, None, device):
            pooled.append(model.exchange(batch.sparse)[batch.weight > 0].cpu())
            rows += len(pooled[-1])
            if rows >= SAMPLE_ROWS:
                break
    return torch.cat(pooled)[:SAMPLE_ROWS]


def find_affinity(setup: Setup, kind: str) -> np.ndarray:
    """Compute, or read, the affinity of all features in the order of the tables, ``[F, F]``.

    Parameters
    ----------
    setup : Setup
        Of :func:`flat_setup`.
    kind : str
        One of `AFFINITIES`, or a .npy or .csv file.

    Raises
    ------
    InputError
        If it is neither, or the file does not fit.
    """
    features = setup.plan.partition.features
    if kind == "ids":
        values, _ = sample_ids(setup.dataset, features)
        return mutual_information(values, setup.config.seed)
    if kind in AFFINITIES:
        measure = alignment if kind == "alignment" else mean_cosine
        return measure(learn_embeddings(setup), setup.plan.tower_dims(0))
    if Path(kind).suffix not in (".npy", ".csv"):
        raise InputError(f"--affinity {kind!r} is none of {', '.join(AFFINITIES)} and no .npy or .csv file")
    return load_affinity(Path(kind), len(features))
