"""Weights averaged over training steps: they score better than those of a single step."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

PER_HORIZON = 10  # snapshots in the steps that the average mostly is of


class AveragedWeights:
    """An exponential moving average of the tables, tower modules and over-arch that this rank holds.

    Element by element, so ranks need not speak, and the average does not depend on how weights lie on them. A step
    touches a few rows of a table, an average all of them: so not every step is averaged, but one in so many that an
    average is mostly of :data:`PER_HORIZON` of them. Until it has as many, it is their plain mean.

    Parameters
    ----------
    model : nn.Module
        As for :class:`~dmt_kernels.train.step.TrainStep`.
    decay : float
        Of the average, per step: it is mostly of the last ``1 / (1 - decay)`` steps.
    steps : int
        Of the run; one that is shorter than that has about as many snapshots all the same.
    """

    def __init__(self, model: nn.Module, decay: float, steps: int) -> None:
        exchange: Any = model.exchange
        tables = dict(exchange.shards.tables.named_buffers())
        self._tables = [f"exchange.shards.tables.{name}" for name in tables]
        weights = [*model.parameters(), *tables.values()]
        self._weights = nn.ParameterList(nn.Parameter(weight.detach(), requires_grad=False) for weight in weights)
        self._every = max(1, round(min(1 / (1 - decay), steps) / PER_HORIZON))
        self._decay = decay**self._every
        self._average = AveragedModel(self._weights)
        self._steps = 0

    def step(self) -> None:
        """Take note of a training step."""
        self._steps += 1
        if self._steps % self._every == 0:
            before = self._steps // self._every - 1  # snapshots
            self._average.multi_avg_fn = get_ema_multi_avg_fn(min(self._decay, before / (before + 1)))
            self._average.update_parameters(self._weights)

    def by_name(self, parameters: list[str]) -> dict[str, torch.Tensor]:
        """The average, while it is outside, by the names of the model's parameters and those of tables."""
        return dict(zip([*parameters, *self._tables], self._average.module.parameters(), strict=True))

    def go_on(self, steps: int) -> None:
        """Take what :meth:`by_name` returned, whose values have been replaced, for the average of so many steps."""
        self._steps = steps
        self._average.n_averaged.fill_(steps // self._every)

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """The model has its trained weights inside, to train on, and the average outside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        if self._average.n_averaged:  # before, there is no average, and the model keeps what it has
            for weight, average in zip(self._weights, self._average.module.parameters(), strict=True):
                held = weight.clone()
                weight.copy_(average)
                average.copy_(held)
