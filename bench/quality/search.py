"""How options are chosen: by validation AUC, in rounds of trials, the same for flat and multi-tower models.

The first round is random, later ones lie near the best so far. The validation AUC of one run differs from seed to seed
by as much as that of good options does, and the best of many runs is mostly a lucky one; so the best few of every round
run again with other seeds, and means decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from bench.quality.space import Options, draw_near, draw_trials

Trial = tuple[Options, int]  # and which of its seeds
Score = Callable[[Options, int], float | None]  # None: not yet run


@dataclass(frozen=True)
class Course:
    """Where a search is.

    Parameters
    ----------
    known, missing : list
        Trials so far, those to run next among them, and these.
    best : dict or None
        The options with the best mean; None while any trial is missing.
    """

    known: list[Trial]
    missing: list[Trial]
    best: Options | None


@dataclass(frozen=True)
class Search:
    """How much is tried.

    Parameters
    ----------
    trials : int
        Random ones.
    near : int
        Trials of every later round.
    rounds : int
        Later rounds, near the best so far; 0: random trials alone.
    finalists, seeds : int
        How many of a round run again, and how many runs each of them has in all.
    """

    trials: int = 20
    near: int = 8
    rounds: int = 2
    finalists: int = 3
    seeds: int = 3

    def course(self, score: Score) -> Course:
        """Say what is to be run next, given the scores of what has run."""
        known: list[Trial] = []
        judged: list[tuple[float, Options]] = []
        best: Options = {}
        for step in range(self.rounds + 1):
            drawn = draw_near(best, self.near, step) if step else draw_trials(self.trials)
            first = [(options, 0) for options in drawn]
            if missing := [trial for trial in first if score(*trial) is None]:
                return Course(known + first, missing, None)
            finalists = sorted(drawn, key=lambda options: score(options, 0) or 0.0, reverse=True)[: self.finalists]
            again = [(options, seed) for options in finalists for seed in range(1, self.seeds)]
            known += first + again
            if missing := [trial for trial in again if score(*trial) is None]:
                return Course(known, missing, None)
            judged += [(self.mean(options, score), options) for options in finalists]
            best = max(judged, key=lambda one: one[0])[1]
        return Course(known, [], best)

    def mean(self, options: Options, score: Score) -> float:
        """The mean score of options all of whose seeds have run."""
        return fmean(score(options, seed) or 0.0 for seed in range(self.seeds))
