"""What is compared: multi-tower models of a grid, each with the flat model of the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.quality.partitions import seed_of
from bench.quality.records import Record
from bench.quality.search import Search
from bench.quality.space import Options
from dmt_kernels.train.config import TrainConfig

PARTITIONS = ("coherent", "diverse", "strided", "random")
TUNING_SEED = 1000  # the first of trials: none of those that models are compared with


@dataclass(frozen=True)
class Cell:
    """A model that is trained with several seeds; flat if it has no towers.

    Parameters
    ----------
    model : str
        Over-arch.
    towers : int
        ``T``; 0: flat.
    compression : float
        That is aimed at.
    partition : str
        How towers were chosen.
    payload : str
        What rows of towers travel as while training.
    """

    model: str
    towers: int = 0
    compression: float = 1
    partition: str = "-"
    payload: str = "fp32"

    @property
    def is_flat(self) -> bool:
        return self.towers == 0

    @property
    def twin(self) -> Cell:
        """The flat model it is compared with."""
        return Cell(self.model)

    def options(self) -> Options:
        """Options of a run, but for the towers' features."""
        if self.is_flat:
            return {"model": self.model, "exchange": "flat"}
        return {
            "model": self.model,
            "exchange": "sptt",
            "tower_module": self.model,
            "towers": self.towers,
            "compression": self.compression,
            "tower_lr": TrainConfig.tower_lr,  # named, so that runs of another default are other runs
            **({"payload": self.payload} if self.payload != "fp32" else {}),
        }

    def __str__(self) -> str:
        if self.is_flat:
            return f"{self.model} flat"
        name = f"{self.model} T={self.towers} CR={self.compression:g} {self.partition}"
        return name if self.payload == "fp32" else f"{name} {self.payload}"


@dataclass(frozen=True)
class Plan:
    """What a bench does.

    Parameters
    ----------
    data : str
        As for ``train``.
    cells : sequence of Cell
        Multi-tower models, the most valuable first.
    tune_at : int
        Number of towers of the multi-tower models whose trials choose the options of all that have their over-arch and
        compression: what is best for one compression is not for another.
    search : Search
        How the options of each over-arch are chosen, flat and multi-tower.
    epochs, patience : int
        Epochs at most, and how many without a better validation AUC end a run or a trial.
    least, most : int
        Seeds.
    half_width : float
        Of the confidence interval below which no seeds are added.
    trial_epochs : int or None
        Of trials at most; None: those of a run. Fewer choose options for whichever model converges sooner, which is as
        a rule the flat one: a bias against towers.
    payloads : sequence of str
        That trained multi-tower models are scored with.
    options, tower_options : dict
        Of :class:`TrainConfig`, for all runs and for multi-tower ones.
    """

    data: str
    cells: Sequence[Cell]
    tune_at: int = 4
    search: Search = field(default_factory=Search)
    epochs: int = 20
    patience: int = 2
    least: int = 3
    most: int = 20
    half_width: float = 0.0004
    trial_epochs: int | None = None
    payloads: Sequence[str] = ()
    options: Options = field(default_factory=dict)
    tower_options: Options = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """The over-archs."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def twins(self) -> list[Cell]:
        """The flat models."""
        return [Cell(model) for model in self.models]

    def source(self, cell: Cell) -> Cell:
        """The model whose trials choose the options of `cell`: its towers are of the first partition."""
        if cell.is_flat:
            return cell
        return Cell(cell.model, self.tune_at, cell.compression, self.cells[0].partition)

    @property
    def sources(self) -> list[Cell]:
        """The models that have trials, flat ones first."""
        return list(dict.fromkeys([*self.twins, *map(self.source, self.cells)]))

    def trial(self, cell: Cell, drawn: Options, seed: int) -> Record:
        """One of the trials that choose the options of `cell`."""
        return self._spec(cell, {**drawn, "epochs": self.trial_epochs or self.epochs}, TUNING_SEED + seed, ())

    def run(self, cell: Cell, drawn: Options, seed: int) -> Record:
        """A run with the options that were found best."""
        payloads = () if cell.is_flat or cell.payload != "fp32" else self.payloads
        return self._spec(cell, {**drawn, "epochs": self.epochs}, seed, payloads)

    def _spec(self, cell: Cell, given: Options, seed: int, payloads: Sequence[str]) -> Record:
        options = {"data": self.data, "seed": seed, "early_stop": self.patience, **cell.options(), **given}
        options |= self.options | ({} if cell.is_flat else self.tower_options)
        towers = None if cell.is_flat else [cell.partition, seed_of(cell.partition, self.data, seed)]
        return {"options": options, "partition": towers, "payloads": list(payloads)}


def grid(
    models: Sequence[str],
    towers: Sequence[int],
    compressions: Sequence[float],
    partitions: Sequence[str],
    payloads: Sequence[str],
) -> list[Cell]:
    """All combinations; those of the first partition come before all others, and payloads narrower than fp32 last."""
    cells = [
        Cell(model, t, compression, partition, payload)
        for payload, partition, t, compression, model in itertools.product(
            ["fp32", *payloads], partitions, towers, compressions, models
        )
    ]
    return list(dict.fromkeys(cells))
