"""The course of a bench: partitions, trials, then seeds, until every difference is known well enough."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from bench.quality.grid import Cell, Plan
from bench.quality.records import Record, Records
from bench.quality.search import Course
from bench.quality.space import Options
from bench.quality.statistics import Estimate, estimate, needs_more
from bench.quality.training import config_of, run

Job = tuple[str, Record]  # what it is called, and what is run
FAILED = 0.0  # no validation AUC that is of use is as low


@dataclass(frozen=True)
class Study:
    """A plan, what of it is done, and what is to be done next.

    Parameters
    ----------
    plan : Plan
        What to do.
    records : Records
        Finished runs.
    """

    plan: Plan
    records: Records

    def check(self) -> None:
        """Try the options of every model before any of them is trained.

        Raises
        ------
        InputError
            Naming what cannot be trained with.
        """
        for cell in [*self.plan.twins, *self.plan.tuned.values(), *self.plan.cells]:
            for spec in (self.plan.trial(cell, {}, 0), self.plan.run(cell, {}, 0)):
                config_of(spec)

    @property
    def sources(self) -> list[Cell]:
        """The models that have trials."""
        return [*self.plan.twins, *self.plan.tuned.values()]

    def course(self, cell: Cell) -> Course:
        """The search for the options of `cell`."""
        return self.plan.search.course(functools.partial(self.score, cell))

    def score(self, cell: Cell, drawn: Options, seed: int) -> float | None:
        """The validation AUC of a trial for the options of `cell`, `FAILED`, or None before it has run."""
        source = cell.twin if cell.is_flat else self.plan.tuned[cell.model]
        record = self.records.find(self.plan.trial(source, drawn, seed))
        if record is None:
            return None
        return FAILED if "failed" in record else record["valid_auc"]

    def tuned(self, cell: Cell) -> Options | None:
        """The options that gave the best validation AUC; None before all trials have run."""
        return self.course(cell).best

    def runs(self, cell: Cell) -> dict[int, Record]:
        """Finished runs of a tuned model, by seed."""
        if (drawn := self.tuned(cell)) is None:
            return {}
        found = {seed: self.records.find(self.plan.run(cell, drawn, seed)) for seed in range(self.plan.most)}
        return {seed: record for seed, record in found.items() if record is not None and "failed" not in record}

    def pairs(self, cell: Cell, other: Cell) -> list[tuple[Record, Record]]:
        """Finished runs of both with the same seed."""
        runs, others = self.runs(cell), self.runs(other)
        return [(runs[seed], others[seed]) for seed in sorted(runs.keys() & others.keys())]

    def difference(self, cell: Cell) -> Estimate:
        """Test AUC of a multi-tower model minus that of its flat twin."""
        return estimate([run["auc"] - flat["auc"] for run, flat in self.pairs(cell, cell.twin)])

    def finished(self) -> list[Record]:
        """All that the tables are made of: trials, then seeds."""
        trials = [
            self.records.find(self.plan.trial(cell, *trial))
            for cell in self.sources
            for trial in self.course(cell).known
        ]
        cells = [*self.plan.twins, *self.plan.cells]
        runs = [run for cell in cells for run in self.runs(cell).values()]
        return [trial for trial in trials if trial is not None] + runs

    def next_jobs(self) -> list[Job]:
        """What can run now, in order: trials of everything, or else another seed of what is not known well enough."""
        trials = [
            (f"trial of {cell}", self.plan.trial(cell, *trial))
            for cell in self.sources
            for trial in self.course(cell).missing
        ]
        if trials:
            return trials
        for seed in range(self.plan.most):
            if jobs := list(self._jobs_of(seed)):
                return jobs
        return []

    def _jobs_of(self, seed: int) -> Iterator[Job]:
        wanted = [
            cell
            for cell in self.plan.cells
            if seed < self.plan.least or needs_more(self.difference(cell), self.plan.half_width, 0, self.plan.most)
        ]
        for cell in [*dict.fromkeys(cell.twin for cell in wanted), *wanted]:
            drawn = self.tuned(cell)
            assert drawn is not None
            spec = self.plan.run(cell, drawn, seed)
            if self.records.find(spec) is None:
                yield f"{cell} seed {seed}", spec


Tell = Callable[[str, Record, int], None]


def conduct(study: Study, folder: Path, jobs: int, tell: Tell) -> None:
    """Run what is missing, `jobs` at a time in processes of one thread each, and record it as it ends.

    Parameters
    ----------
    folder : Path
        Where chosen towers are kept.
    tell : callable
        Called with a finished run's name and record, and how many are left of those that are known to be needed.
    """
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            while waiting := study.next_jobs():
                _run_all(waiting, pool, folder, jobs, study.records, tell)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_all(
    waiting: Sequence[Job], pool: ProcessPoolExecutor, folder: Path, jobs: int, records: Records, tell: Tell
) -> None:
    queue, running = iter(waiting), dict[Future[Record], str]()
    left = len(waiting)

    def submit() -> None:
        for _, (name, spec) in zip(range(jobs - len(running)), queue, strict=False):
            running[pool.submit(run, spec, folder)] = name

    submit()
    while running:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            name, record = running.pop(future), future.result()
            records.add(record)
            left -= 1
            tell(name, record, left)
        submit()
