"""Into how many chunks a batch is cut: what was given, or what a trial in the first steps of training shows."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Literal, TypeAlias

import torch
import torch.distributed as dist

from dmt_kernels.comm import Mesh
from dmt_kernels.ops.groups import naming_failures
from dmt_kernels.spec import InputError

MAX_CHUNKS = 64  # of a batch
CANDIDATES = (1, 2, 4, 8)
IN_A_ROW = (
    2  # steps with a candidate, of which the first does not count: memory and caches are as another one left them
)
ROUNDS = 12  # over the candidates, of which the first does not count either
TRIAL_STEPS = len(CANDIDATES) * IN_A_ROW * ROUNDS
MARGIN = 1.02  # more chunks must win by that much: they cost memory, and differences below are noise

Chunks: TypeAlias = int | Literal["auto"]


class ChunkChoice:
    """Chunks of the batches to come.

    A trial is live: steps of training with different numbers of chunks, in turns, whose embeddings are the same and
    cost nothing extra. A step lasts from one batch's departure to the next one's, so all that a step does counts. Then
    ranks add up their medians, and so choose alike.

    Parameters
    ----------
    chunks : int or "auto"
        What was asked for.
    mesh : Mesh
        Whose ranks choose together.

    Attributes
    ----------
    chosen : int or None
        What it is; None during a trial.

    Raises
    ------
    InputError
        For too few or too many chunks, or another word.
    """

    def __init__(self, chunks: Chunks, mesh: Mesh) -> None:
        if chunks != "auto" and not (isinstance(chunks, int) and 1 <= chunks <= MAX_CHUNKS):
            raise InputError(f"a batch cannot be cut into {chunks} chunks; choose 1 to {MAX_CHUNKS}, or 'auto'")
        self.chosen = None if chunks == "auto" else chunks
        self._mesh = mesh
        self._departures = 0  # of training batches
        self._since = 0.0  # the latest departure
        self._latest, self._in_a_row = 0, 0  # chunks of the latest training batch, and steps with so many
        self._seconds: dict[int, list[float]] = defaultdict(list)  # of a step with so many chunks

    @property
    def next(self) -> int:
        """Of the next batch of training, whose ids are about to leave."""
        return self.chosen or CANDIDATES[self._departures // IN_A_ROW % len(CANDIDATES)]

    def depart(self, chunks: int, *, trains: bool) -> None:
        """Note that a batch departs, cut into so many, on all ranks alike.

        A step that an evaluation follows does not count.
        """
        if self.chosen is not None:
            return
        now, warm_up = time.perf_counter(), TRIAL_STEPS // ROUNDS
        if trains and self._in_a_row >= IN_A_ROW and self._departures > warm_up:
            self._seconds[self._latest].append(now - self._since)
        self._in_a_row = self._in_a_row + 1 if trains and chunks == self._latest else int(trains)
        self._since, self._latest = now, chunks
        self._departures += trains
        if self._departures > TRIAL_STEPS and self._seconds:
            self._choose()

    def _choose(self) -> None:
        # Where a batch cannot be cut into a candidate's number of chunks, fewer were tried: the same on all ranks.
        tried = sorted(self._seconds)
        medians = [statistics.median(self._seconds[chunks]) for chunks in tried]
        total = torch.tensor(medians, dtype=torch.float64, device=self._mesh.device)
        with naming_failures(self._mesh.dense.group_name, "chose the number of chunks"):
            dist.all_reduce(total, group=self._mesh.dense)
        seconds = total.tolist()
        self.chosen = next(chunks for chunks, s in zip(tried, seconds, strict=True) if s <= MARGIN * min(seconds))
