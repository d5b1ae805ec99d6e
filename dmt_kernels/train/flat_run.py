"""A short run of a data set's flat model, and what it makes of rows it has not seen."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmt_kernels.train.assemble import Setup, build_model, make_loader, set_up_training
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.data import SAMPLE_ROWS
from dmt_kernels.train.step import TrainStep

STEPS = 400  # enough to tell features apart, and a few seconds


@dataclass(frozen=True)
class FlatRun:
    """A model that was trained for a while, and a sample of rows of the validation split, where there is one.

    Parameters
    ----------
    model : nn.Module
        The flat model.
    dims : tuple of int
        Embedding dims of the features, in the order of the tables.
    dense : Tensor
        ``[n, K]`` dense input of the rows.
    pooled : Tensor
        ``[n, sum(dims)]`` pooled embeddings of the rows.
    label : Tensor
        ``[n]`` labels.
    """

    model: nn.Module
    dims: tuple[int, ...]
    dense: Tensor
    pooled: Tensor
    label: Tensor


def flat_setup(config: TrainConfig) -> Setup:
    """Set up the flat twin of a run in this one process, features in the order of the tables."""
    flat = dataclasses.replace(
        config, exchange="flat", tower_module="none", local=True, towers=1, members=1, partition="contiguous"
    )
    return set_up_training(flat)


def train_flat(setup: Setup) -> FlatRun:
    """Train what :func:`flat_setup` set up for ``config.steps``."""
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
    parts, rows = [], 0
    with torch.no_grad():
        for batch in make_loader(setup, split, None, device):
            real = batch.weight > 0
            parts.append([part[real] for part in (batch.dense, model.exchange(batch.sparse), batch.label)])
            rows += len(parts[-1][0])
            if rows >= SAMPLE_ROWS:
                break
    dense, pooled, label = (torch.cat(part)[:SAMPLE_ROWS] for part in zip(*parts, strict=True))
    return FlatRun(model, setup.plan.tower_dims(0), dense, pooled, label)
