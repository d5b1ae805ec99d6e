"""Ranks start, end, and fail together."""

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dmt_kernels.spec import InputError
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.launch import RankFailed, run_ranks
from dmt_kernels.train.loop import train_rank
from dmt_kernels.train.step import TrainStep
from tests.train.processes import alive, alive_in_session, parent, wait_until, without_ranks

pytestmark = pytest.mark.distributed
WORLD = 4
ALL_GONE_S = 30


def note_pid(folder):
    (Path(folder) / os.environ["RANK"]).write_text(str(os.getpid()))


def noted_pids(folder):
    return [int(path.read_text()) for path in folder.iterdir()]


def add_ranks(folder):
    note_pid(folder)
    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank()])
    dist.all_reduce(total)
    dist.destroy_process_group()
    return total.item(), torch.get_num_threads()


def fail_while_training(folder, how):
    """Train until, in the third step, rank 2 fails."""
    note_pid(folder)
    steps, train_step = [], TrainStep.__call__

    def failing(self, batch, next_batch=None):
        steps.append(batch)
        if len(steps) == 3 and self.mesh.rank == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "sleeps":
                time.sleep(60)
            raise InputError("row 7 is bad") if how == "bad input" else ArithmeticError("rank 2 has had enough")
        return train_step(self, batch, next_batch)

    TrainStep.__call__ = failing
    train_rank(TrainConfig(data="synthetic:2000", towers=2, members=2, batch_size=64, timeout=10))


def train_with_a_rate_of_its_own():
    rate = 0.1 if os.environ["RANK"] == "1" else 0.2
    return train_rank(TrainConfig(data="synthetic:200", towers=2, members=1, batch_size=64, dense_lr=rate))


def test_ranks_that_were_given_other_options_say_so():
    said = run_ranks(train_with_a_rate_of_its_own, world=2)
    assert isinstance(said, InputError)
    assert str(said) == "rank 1 has --dense-lr 0.1, rank 0 has --dense-lr 0.2"


@pytest.mark.parametrize(
    ("asked", "threads"), [(None, max(1, len(os.sched_getaffinity(0)) // WORLD)), (3, 3)], ids=["shared", "asked"]
)
def test_rank_0_returns_and_cores_are_shared_out(tmp_path, asked, threads):
    assert run_ranks(add_ranks, tmp_path, world=WORLD, threads=asked) == (sum(range(WORLD)), threads)
    assert len(noted_pids(tmp_path)) == WORLD


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ("raises", RankFailed, r"rank 2 [^\n]*:\nTraceback[\s\S]*ArithmeticError: rank 2 has had enough\s*$"),
        ("killed", RankFailed, r"rank 2 [\s\S]*SIGKILL"),
        ("bad input", InputError, "^row 7 is bad$"),
        (
            "sleeps",
            RankFailed,
            r"^rank [013] [\s\S]*ExchangeError: rank [013] waited [^\n]* stage of group '\d+' \(ranks ",
        ),
    ],
)
def test_a_rank_that_fails_in_training_ends_them_all_and_is_the_one_reported(how, error, sentence, tmp_path):
    with pytest.raises(error, match=sentence):
        run_ranks(fail_while_training, tmp_path, how, world=WORLD)
    pids = noted_pids(tmp_path)
    assert len(pids) == WORLD
    assert wait_until(lambda: not any(map(alive, pids)), ALL_GONE_S)


@contextlib.contextmanager
def training():
    """The command that trains, once it does so, in a session of its own."""
    command = [sys.executable, "-m", "dmt_kernels", "train", "--data", "synthetic:20000", "--epochs", "1000"]
    command += ["--towers", "2", "--members", "2", "--batch-size", "256", "--log-every", "1"]
    launcher = subprocess.Popen(
        command, env=without_ranks(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert launcher.stdout.readline().startswith("dlrm"), launcher.stderr.read()
        assert len(alive_in_session(launcher.pid)) > WORLD
        yield launcher
        assert wait_until(lambda: not alive_in_session(launcher.pid), ALL_GONE_S)
    finally:
        for pid in alive_in_session(launcher.pid):
            os.kill(pid, signal.SIGKILL)


def test_the_command_ends_when_rank_0_is_killed():
    with training() as launcher:
        families = collections.Counter(parent(pid) for pid in alive_in_session(launcher.pid))
        ranks = [pid for pid in alive_in_session(launcher.pid) if families[parent(pid)] == WORLD]
        os.kill(min(ranks), signal.SIGKILL)  # they are started in order
        _, said = launcher.communicate(timeout=ALL_GONE_S)
        assert launcher.returncode == 1
        assert re.match(r"dmt_kernels: rank 0 \(process \d+, exit code -9\) failed:\nSignal 9 \(SIGKILL\)", said), said


@pytest.mark.parametrize("signal_to", ["terminal", "launcher, killed"])
def test_ctrl_c_ends_every_process(signal_to):
    with training() as launcher:
        send = os.killpg if signal_to == "terminal" else os.kill
        send(launcher.pid, signal.SIGKILL if signal_to.endswith("killed") else signal.SIGINT)
        _, said = launcher.communicate(timeout=ALL_GONE_S)
        if not signal_to.endswith("killed"):
            assert launcher.returncode == 130
            assert said.endswith("dmt_kernels: interrupted\n")
            assert "Traceback" not in said
