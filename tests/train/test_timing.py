"""Steps are timed from end to end, with the warm-up left out."""

import pytest
import torch

from dmt_kernels.train import timing


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_figures(clock):
    timer = timing.StepTimer(torch.device("cpu"))
    timer.restart()
    for seconds in [9.0] * 5 + [0.1, 0.2, 0.3, 0.2, 0.2, 0.2]:
        clock[0] += seconds
        timer.step(samples=12)
    clock[0] += 100.0  # an evaluation
    timer.restart()
    clock[0] += 0.2
    timer.step(samples=12)
    step_ms, samples_per_s = timer.figures()
    assert step_ms == pytest.approx(200)
    assert samples_per_s == pytest.approx(7 * 12 / 1.4)


def test_few_steps_are_figures_too(clock):
    timer = timing.StepTimer(torch.device("cpu"))
    assert timer.figures() == (0.0, 0.0)
    timer.restart()
    clock[0] += 0.5
    timer.step(samples=4)
    assert timer.figures() == pytest.approx((500, 8))
