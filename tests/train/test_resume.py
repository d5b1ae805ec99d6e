"""Runs that are interrupted and go on: they end as if nothing had happened."""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dmt_kernels.cli import main
from dmt_kernels.comm import Mesh, build_mesh
from dmt_kernels.spec import Batch, InputError
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.loop import Trainer, agree, prepare, take_folder, train_rank
from dmt_kernels.train.output import RunFolder
from tests.devices import on_cuda
from tests.ranks import run_ranks
from tests.train.processes import without_ranks

LOCAL = TrainConfig(
    data="synthetic:500", batch_size=50, embedding_dim=8, towers=2, members=1, local=True, log_every=3, out="somewhere"
)
STEPS_PER_EPOCH = 10
AT_THE_END = -1  # of its first epoch a run is interrupted, before it is scored
# Figures of one process: its times, and bytes of its own steps' ids.
OWN = ("step_ms_median", "samples_per_s", "loader_samples_per_s", "id_bytes_per_step")


class Interrupted(Exception):
    """Instead of a step."""


def _run(config: TrainConfig, mesh: Mesh | None, until: float = float("inf")) -> tuple[Trainer, dict[str, Any]] | None:
    """Train like a rank of the command, and what it returns; None where it is interrupted before a step."""
    setup, since = prepare(config)
    trainer = Trainer(setup, mesh, since)
    batches, taken = trainer._batches, itertools.count()

    def interrupted() -> Iterator[tuple[Batch, Batch | None]]:
        for pair in batches():
            if next(taken) == until:
                raise Interrupted
            yield pair
        if until == AT_THE_END:
            raise Interrupted

    trainer._batches = interrupted  # type: ignore[method-assign]
    try:
        return trainer, trainer.run()
    except Interrupted:
        return None


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in OWN} for line in RunFolder(folder).read_metrics()]


def _compare(config: TrainConfig, interruptions: list[int], folder: Path, mesh: Mesh | None) -> None:
    """Whether a run that is interrupted is one that is not, to the last bit of everything."""
    whole = _run(dataclasses.replace(config, out=str(folder / "whole"), save_every=None), mesh)
    parts = dataclasses.replace(config, out=str(folder / "parts"), resume=True)
    for until in interruptions:
        assert _run(parts, mesh, until) is None
    last = _run(parts, mesh)
    assert whole is not None and last is not None
    for name, figure in whole[1].items():
        is_of_no_step = name.endswith("bytes_per_step") and AT_THE_END in interruptions and last[1][name] is None
        assert name in OWN or is_of_no_step or last[1][name] == figure, name
    assert all(map(torch.equal, *(trainer.model.state_dict().values() for trainer, _ in (whole, last))))
    if mesh is None or mesh.rank == 0:
        assert _metrics(folder / "parts") == _metrics(folder / "whole")
        assert not (folder / "parts" / "states").exists()


@pytest.mark.parametrize(
    ("options", "interruptions"),
    [
        ({"epochs": 3, "save_every": 5}, [7]),
        ({"epochs": 1, "save_every": 5}, [AT_THE_END]),
        ({"steps": 20, "save_every": STEPS_PER_EPOCH, "dense_optimizer": "adagrad"}, [STEPS_PER_EPOCH, 4]),
        ({"epochs": 2, "save_every": 3, "average_weights": 0.8, "tower_module": "dcn"}, [2, 4, 0]),
        # Its best epoch is the sixth of nine.
        ({"epochs": 12, "save_every": 7, "early_stop": 3, "table_lr": 0.5, "dtype": "float64"}, [75]),
        ({"epochs": 2, "save_every": 1, "payload": "fp8", "stochastic": True, "tower_module": "dlrm"}, [10]),
    ],
    ids=["within", "at the end", "between epochs", "averaged, before any state", "stopped early", "random rounding"],
)
def test_in_one_process(options: dict[str, Any], interruptions: list[int], tmp_path: Path) -> None:
    _compare(dataclasses.replace(LOCAL, **options), interruptions, tmp_path, None)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_cuda)])
def test_on_a_gpu(device: str, tmp_path: Path) -> None:
    options = {"epochs": 2, "save_every": 4, "average_weights": 0.8, "tower_module": "dlrm", "early_stop": 3}
    figures = []
    for until, name in ((float("inf"), "whole"), (7, "parts"), (float("inf"), "parts")):
        config = dataclasses.replace(LOCAL, **options, device=device, out=str(tmp_path / name), resume=True)
        figures.append(_run(config, None, until))
    whole, _, last = figures
    assert whole is not None and last is not None and last[0].since is not None and last[0].since.losses
    for name in ("auc", "logloss", "valid_auc", "valid_logloss"):
        assert last[1][name] == pytest.approx(whole[1][name], rel=1e-4), name


def _on_ranks(rank: int, folder: Path, placement: str) -> None:
    options = {"payload": "bf16", "stochastic": True, "chunks": 2, "average_weights": 0.8, "early_stop": 3}
    config = TrainConfig(
        data="synthetic:400",
        batch_size=48,
        embedding_dim=8,
        towers=2,
        members=2,
        tower_module="dlrm",
        placement=placement,
        split="columns",
        epochs=2,
        save_every=3,
        out="somewhere",
        **options,  # type: ignore[arg-type]
    )
    # A trial's answer holds for the whole run: later ones would have another.
    answers = itertools.chain(["owner"] * 2, itertools.repeat("member"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmt_kernels.embedding.wired_exchange.quickest", lambda *_: next(answers))
        _compare(config, [5, 4], folder, build_mesh(2, 2, timeout_s=30))


@pytest.mark.distributed
@pytest.mark.parametrize("placement", ["member", "auto"])  # a trial's answer is the owner
def test_on_ranks(placement: str, tmp_path: Path) -> None:
    run_ranks(_on_ranks, 4, tmp_path, placement)


DYING = """
import itertools, os, pathlib, signal, sys
from dmt_kernels.cli import main
from dmt_kernels.train.step import TrainStep

died = pathlib.Path(__file__).with_name("died")
if os.environ["RANK"] == "1" and not died.exists():
    step, taken = TrainStep.__call__, itertools.count()

    def dying(self, *arguments):
        if next(taken) == 6:
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments)

    TrainStep.__call__ = dying
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.distributed
def test_torchrun_restarts_a_run_whose_rank_was_killed(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    train = ["train", "--data", "synthetic:400", "--batch-size", "40", "--towers", "2", "--members", "1"]
    train += ["--tower-module", "dlrm", "--steps", "9", "--timeout", "20"]
    # One restart is for the death. torchrun also picks a port that is free long before a rank listens there, which
    # another process may take meanwhile.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(tmp_path / "dying.py")]
    out = tmp_path / "restarted"
    command = [*launcher, *train, "--out", str(out), "--save-every", "4", "--resume"]
    alone = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # or ranks find the addresses of those before them
    done = subprocess.run(command, env=without_ranks() | alone, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 4/9  goes on" in done.stdout
    assert main([*train, "--out", str(tmp_path / "whole")]) == 0
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (out, tmp_path / "whole"))
    for name in ("auc", "logloss", "valid_auc", "valid_logloss", "steps", "peer_bytes_per_step"):
        assert ours[name] == theirs[name], name


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run that has left a state of its fourth step."""
    config = dataclasses.replace(LOCAL, epochs=1, save_every=4, out=str(tmp_path_factory.mktemp("run") / "out"))
    assert _run(config, None, until=6) is None
    return config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dense_lr": 0.5}, "has --dense-lr 0.001, not 0.5"),
        ({"seed": 1}, "has --seed 0, not 1"),
        ({"batch_size": 25}, "has --batch-size 50, not 25"),
        ({"dtype": "float64"}, "has --dtype float32, not float64"),
        ({"early_stop": 2}, "has --early-stop None, not 2"),
        ({"data": "synthetic:600"}, r"splits of \(500, 62, 62\) rows, not \(600, 75, 75\)"),
        ({"partition": "contiguous"}, r"other tables or towers \(layout.json\)"),
        ({"towers": 1}, "has --towers 2, not 1"),
        ({"epochs": None, "steps": 3}, "has trained 4 steps, not 3"),
    ],
)
def test_another_run_does_not_go_on(unfinished: TrainConfig, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        prepare(dataclasses.replace(unfinished, resume=True, **changes))


def test_a_run_that_goes_on_may_train_longer_and_elsewhere(unfinished: TrainConfig) -> None:
    changes: dict[str, Any] = {"epochs": 5, "log_every": 1, "save_every": None, "threads": 3, "timeout": 5}
    _, since = prepare(dataclasses.replace(unfinished, resume=True, **changes))
    assert since is not None
    assert (since.step, since.steps, since.epoch, since.epoch_step, len(since.losses)) == (4, 10, 0, 4, 1)


def test_a_state_that_was_being_written_does_not_count(unfinished: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(str(unfinished.out), out)
    shutil.copytree(out / "states" / "step-4", out / "states" / "step-5")
    (out / "states" / "step-5" / ".metadata").unlink()
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')
    config = dataclasses.replace(unfinished, out=str(out), resume=True)
    gone_on = _run(config, None)
    assert gone_on is not None and gone_on[0].since is not None and gone_on[0].since.step == 4
    assert [line["step"] for line in _metrics(out)] == [3, 6, 9, 10, 10]


def test_the_latest_state_counts_and_the_others_go(unfinished: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(unfinished, epochs=2, out=str(tmp_path / "out"), resume=True)
    states = tmp_path / "out" / "states"
    assert _run(config, None, until=9) is None
    shutil.copytree(states / "step-8", tmp_path / "kept")
    assert _run(config, None, until=5) is None
    assert [path.name for path in states.iterdir()] == ["step-12"]
    shutil.copytree(tmp_path / "kept", states / "step-8")
    (states / "step-16.copy").mkdir()
    _, since = prepare(config)
    assert since is not None and since.step == 12


def test_a_run_is_not_overwritten_unasked(unfinished: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(str(unfinished.out), out)
    config = dataclasses.replace(unfinished, out=str(out))
    with pytest.raises(InputError, match="already holds a run"):
        prepare(config)
    shutil.rmtree(out / "states")  # another run's model would be lost, this one's comes again
    with pytest.raises(InputError, match="has --seed 0, not 1"):
        prepare(dataclasses.replace(config, resume=True, seed=1))
    assert prepare(dataclasses.replace(config, resume=True))[1] is None


def test_a_finished_run_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--data", "synthetic:200", "--local", "--steps", "2", "--batch-size", "32", "--resume"]
    said = []
    for _ in range(2):
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
        said.append(capsys.readouterr().out.partition("trained")[2].splitlines())
    assert said[0][1:] == said[1][1:]
    assert said[1][0].startswith(" before: ")


def test_an_average_goes_on_as_it_was_begun_though_the_run_is_shorter_or_longer(tmp_path: Path) -> None:
    config = dataclasses.replace(LOCAL, steps=40, save_every=5, average_weights=0.99, out=str(tmp_path / "out"))
    assert _run(config, None, until=6) is None
    averages = []
    for steps in (6, 40, 80):
        out = tmp_path / str(steps)
        shutil.copytree(str(config.out), out)
        setup, since = prepare(dataclasses.replace(config, out=str(out), steps=steps, resume=True))
        average = Trainer(setup, None, since).average
        assert average is not None
        averages.append((average._every, int(average._average.n_averaged)))
    assert averages == [(4, 1)] * 3


def _taken(rank: int, path: Path) -> str:
    with contextlib.ExitStack() as held:
        return str(take_folder(RunFolder(path), build_mesh(2, 1, timeout_s=30), held))


def test_a_folder_that_ranks_do_not_share_is_told_on_all_of_them(tmp_path: Path) -> None:
    for said in run_ranks(_taken_apart, 2, tmp_path):
        assert "rank 1 does not see what rank 0 writes there" in said


def _taken_apart(rank: int, path: Path) -> str:
    return _taken(rank, path / f"of {rank}")


def test_a_folder_has_one_run(tmp_path: Path) -> None:
    """On ranks and in one process, as long as the other one lives and has it, and nothing is lost."""
    hold = f"import sys; from dmt_kernels.train.output import RunFolder as R; x = R({str(tmp_path)!r}).take(); print(1)"
    other = [sys.executable, "-uc", hold + "; sys.stdin.read()"]
    with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        (tmp_path / "metrics.jsonl").write_text("lines")
        told = train_rank(dataclasses.replace(LOCAL, epochs=1, out=str(tmp_path), overwrite=True))
        assert isinstance(told, InputError) and "another run is writing there" in str(told)
        assert (tmp_path / "metrics.jsonl").read_text() == "lines"
        for said in run_ranks(_taken, 2, tmp_path):
            assert "another run is writing there" in said
        process.kill()
    assert run_ranks(_taken, 2, tmp_path) == ["None"] * 2
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == [".lock"]


def test_file_systems_without_locks_are_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def has_none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", has_none)
    RunFolder(tmp_path).take().close()


def _steps_apart(rank: int) -> str:
    setup, _ = prepare(dataclasses.replace(LOCAL, local=False, out=None))
    return str(agree(setup, None, build_mesh(2, 1, timeout_s=30), ("step to go on from", rank)))


def test_ranks_that_see_different_states_are_told_on_all_of_them() -> None:
    for said in run_ranks(_steps_apart, 2):
        assert "step to go on from" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"resume": True}, "--resume needs --out"),
        ({"save_every": 3}, "--save-every needs --out"),
        ({"resume": True, "overwrite": True, "out": "x"}, "--resume and --overwrite exclude each other"),
        ({"save_every": 0, "out": "x"}, "--save-every 0 is below 1"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        TrainConfig(**options)
