"""How options are chosen: by validation AUC, in rounds of trials, as many for flat and for multi-tower models.

The first round is random, later ones lie near the best so far. The validation AUC of one run differs from seed to seed
by as much as that of good options does, and the best of many runs is mostly a lucky one; so the best few of every round
run again with other seeds, and means decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from bench.quality.space import Options, draw_near, draw_trials

Trial = tuple[Options, int]  # and which of its seeds
Score = Callable[[Options, int], float | None]  # None: not yet run


FAILED = 0.0  # no validation AUC that is of use is as low


@dataclass(frozen=True)
class Course:
    """Where a search is.

    Parameters
    ----------
    known : list
        All trials so far, with those that are `missing`.
    missing : list
        Those to run next.
    best : dict or None
        The options with the best mean; None while any trial is missing.
    mean : float
        Theirs. Flattering: the first run of each is one that was chosen for being good.
    """

    known: list[Trial]
    missing: list[Trial] = field(default_factory=list)
    best: Options | None = None
    mean: float = FAILED


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

    def course(self, score: Score, *, towers: bool = False) -> Course:
        """Say what is to be run next for flat or multi-tower models, given the scores of what has run."""
        known: list[Trial] = []
        best, best_mean = dict[str, Any](), -math.inf
        for step in range(self.rounds + 1):
            drawn = draw_near(best, self.near, step, towers=towers) if step else draw_trials(self.trials, towers=towers)
            known += [(options, 0) for options in drawn]
            if missing := [(options, 0) for options in drawn if score(options, 0) is None]:
                return Course(known, missing)
            finalists = sorted(drawn, key=lambda options: score(options, 0) or FAILED, reverse=True)[: self.finalists]
            again = [(options, seed) for options in finalists for seed in range(1, self.seeds)]
            known += again
            if missing := [trial for trial in again if score(*trial) is None]:
                return Course(known, missing)
            for options in finalists:
                mean = fmean(score(options, seed) or FAILED for seed in range(self.seeds))
                if mean > best_mean:
                    best, best_mean = options, mean
        return Course(known, best=best, mean=best_mean)
