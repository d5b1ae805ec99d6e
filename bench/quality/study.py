"""The course of a bench: partitions, trials, then seeds, until every difference is known well enough."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path

from bench.quality.grid import Cell, Plan
from bench.quality.records import Record, Records, key_of
from bench.quality.search import FAILED, Course
from bench.quality.space import Options
from bench.quality.statistics import Estimate, estimate, needs_more
from bench.quality.training import config_of, run
from dmt_kernels.spec import InputError
from dmt_kernels.train.assemble import set_up_training

Job = tuple[str, Record]  # what it is called, and what is run


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
    _ended: dict[Cell, Course] = field(init=False, repr=False, compare=False, default_factory=dict)

    def check(self) -> None:
        """Try the options of every model before any of them is trained.

        Raises
        ------
        InputError
            Naming what cannot be trained with.
        """
        for cell in [*self.plan.sources, *self.plan.cells]:
            for spec in (self.plan.trial(cell, {}, 0), self.plan.run(cell, {}, 0)):
                config_of(spec)

    def check_data(self) -> None:
        """Open the data.

        Raises
        ------
        InputError
            If it cannot be read, or has no rows to train on, to choose by or to compare by.
        """
        [source, *_] = self.plan.sources
        dataset = set_up_training(config_of(self.plan.trial(source, {}, 0))).dataset
        if not dataset.rows("test"):
            raise InputError(f"{dataset.name} has no test rows to compare by")

    def course(self, cell: Cell) -> Course:
        """The search for the options of `cell`."""
        source = self.plan.source(cell)
        if source in self._ended:
            return self._ended[source]
        course = self.plan.search.course(functools.partial(self._score, source), towers=not source.is_flat)
        if course.best is not None:
            self._ended[source] = course
        return course

    def trial(self, cell: Cell, drawn: Options, seed: int) -> Record | None:
        """A finished trial for the options of `cell`."""
        return self.records.find(self.plan.trial(self.plan.source(cell), drawn, seed))

    def _score(self, cell: Cell, drawn: Options, seed: int) -> float | None:
        record = self.trial(cell, drawn, seed)
        return None if record is None else record.get("valid_auc", FAILED)

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
        trials = [self.trial(cell, *trial) for cell in self.plan.sources for trial in self.course(cell).known]
        cells = [*self.plan.twins, *self.plan.cells]
        runs = [run for cell in cells for run in self.runs(cell).values()]
        return [trial for trial in trials if trial is not None] + runs

    def strangers(self) -> int:
        """How many recorded runs are of other options than the plan's."""
        cells = [*self.plan.twins, *self.plan.cells]
        tuned = [(cell, drawn) for cell in cells if (drawn := self.tuned(cell)) is not None]
        own = {key_of(self.plan.run(cell, drawn, seed)) for cell, drawn in tuned for seed in range(self.plan.most)}
        own |= {
            key_of(self.plan.trial(cell, *trial)) for cell in self.plan.sources for trial in self.course(cell).known
        }
        return sum(key not in own for key in self.records)

    def next_jobs(self, begun: Collection[str] = ()) -> list[Job]:
        """What can run now, in order: trials of everything, or else another seed of what is not known well enough.

        Another seed may begin while runs of the one before are not finished, so some may be more than were needed.

        Parameters
        ----------
        begun : collection of str
            Keys of what runs already.
        """
        trials = [
            (f"trial of {cell}", self.plan.trial(cell, *trial))
            for cell in self.plan.sources
            for trial in self.course(cell).missing
        ]
        stages = [trials] if trials else map(self._jobs_of, range(self.plan.most))
        for stage in stages:
            if jobs := [job for job in stage if key_of(job[1]) not in begun]:
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
    running: dict[Future[Record], Job] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            while True:
                waiting = study.next_jobs([key_of(spec) for _, spec in running.values()])
                left = len(waiting) + len(running)
                for job in waiting[: jobs - len(running)]:
                    running[pool.submit(run, job[1], folder)] = job
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    name, _ = running.pop(future)
                    study.records.add(record := future.result())
                    left -= 1
                    tell(name, record, left)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in active_children():  # what they run is run again
                worker.terminate()
            raise
