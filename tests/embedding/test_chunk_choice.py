"""``chunks="auto"``: the fastest of a live trial, the same on all ranks, and other results by rounding alone."""

import pytest
import torch

from dmt_kernels.comm import Mesh, build_mesh
from dmt_kernels.embedding import chunk_choice
from dmt_kernels.embedding.chunk_choice import CANDIDATES, IN_A_ROW, TRIAL_STEPS, ChunkChoice
from dmt_kernels.spec import InputError
from dmt_kernels.train.assemble import build_model, make_loader, set_up
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.predict import evaluate
from dmt_kernels.train.step import TrainStep
from tests.ranks import run_ranks

BATCH, STEPS = 32, TRIAL_STEPS + 2
CONFIG = TrainConfig(
    data=f"synthetic:{BATCH * STEPS}",
    exchange="sptt",
    towers=2,
    members=1,
    batch_size=BATCH,
    embedding_dim=4,
    dtype="float64",  # Adam makes whole steps of what rounding leaves of a small gradient
)
# Seconds of a step on two ranks, by chunks; what the samples are a multiple of; what is to be chosen.
CASES: list[tuple[list[dict[int, float]], int, int]] = [
    ([{1: 9, 2: 7, 4: 8, 8: 9}] * 2, 8, 2),
    ([{1: 9, 2: 7, 4: 6, 8: 9}, {1: 9, 2: 7, 4: 9, 8: 9}], 8, 2),  # the sum decides
    ([{1: 9, 2: 5.05, 4: 5, 8: 5}] * 2, 8, 2),  # more chunks have to win
    ([{1: 9, 2: 9, 4: 9, 8: 5}] * 2, 8, 8),
    ([{1: 9, 3: 5}] * 2, 3, 3),  # where 4 and 8 do not divide
]


class Clock:
    """Steps of so many seconds, by the number of chunks; the first one after a change takes an hour."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.now, self._seconds, self._latest = 0.0, seconds, 0

    def perf_counter(self) -> float:
        return self.now

    def step(self, chunks: int) -> None:
        self.now += self._seconds[chunks] + 3600 * (chunks != self._latest)
        self._latest = chunks


def _choose(rank: int) -> list[int | None]:
    mesh = build_mesh(2, 1, timeout_s=30)
    return [
        _chosen(mesh, by_rank[rank], divisor, evaluates) for by_rank, divisor, _ in CASES for evaluates in (False, True)
    ]


def _chosen(mesh: Mesh, seconds: dict[int, float], divisor: int, evaluates: bool) -> int | None:
    clock = chunk_choice.time = Clock(seconds)  # type: ignore[assignment]  # of this process
    choice = ChunkChoice("auto", mesh)
    for step in range(TRIAL_STEPS + 1):
        assert choice.chosen is None
        chunks = next(n for n in range(choice.next, 0, -1) if divisor % n == 0)
        choice.depart(chunks, trains=True)
        clock.step(chunks)
        if evaluates and step % 5 == 0:
            clock.now += 1e6
            choice.depart(1, trains=False)
            clock.now += 1e6
    assert choice.next == choice.chosen
    return choice.chosen


@pytest.mark.distributed
def test_ranks_choose_the_fastest_alike():
    expected = [chunks for _, _, chunks in CASES for _ in range(2)]
    assert run_ranks(_choose, 2) == [expected] * 2


def test_a_given_number_is_not_tried():
    choice = ChunkChoice(3, None)  # type: ignore[arg-type]  # nobody is asked
    choice.depart(3, trains=True)
    assert choice.chosen == choice.next == 3


@pytest.mark.parametrize("chunks", [0, 65, "many", 1.5])
def test_what_is_no_number_of_chunks_is_refused(chunks):
    with pytest.raises(InputError, match="choose 1 to 64, or 'auto'"):
        ChunkChoice(chunks, None)  # type: ignore[arg-type]


def _train(rank: int) -> list[int | None]:
    mesh, results, chosen = build_mesh(2, 1, timeout_s=30), [], []
    for chunks in (1, "auto"):
        setup = set_up(TrainConfig(**{**CONFIG.__dict__, "chunks": chunks}))
        model = build_model(setup, mesh)
        step = TrainStep(model, mesh, optimizer="adam", lr=0.01)
        batches = list(make_loader(setup, "train", mesh, torch.device("cpu"), shuffle=True))
        assert len(batches) == STEPS
        for i, batch in enumerate(batches):
            step(batch, batches[i + 1] if i + 1 < len(batches) else None)
            if i == len(CANDIDATES) * IN_A_ROW:
                evaluate(model, batches[:1], mesh)
        results.append(list(model.state_dict().values()))
        chosen.append(model.exchange.chunks)
    for one_chunk, tried in zip(*results, strict=True):  # the over-arch's gradients are summed chunk by chunk
        torch.testing.assert_close(tried, one_chunk, rtol=1e-9, atol=1e-9)
    return chosen


@pytest.mark.distributed
def test_a_trial_changes_a_model_by_rounding_alone():
    first, second = run_ranks(_train, 2)
    assert first == second and first[0] == 1 and first[1] in CANDIDATES
