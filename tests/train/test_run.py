"""Whole runs from the command line: four ranks, one process, and two agents of torchrun."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dmt_kernels.cli import main
from tests.ranks import free_port
from tests.train.processes import without_ranks

pytestmark = pytest.mark.distributed
DATA = ["--data", "synthetic:3000", "--batch-size", "256", "--embedding-dim", "8", "--log-every", "5"]
LOCAL = ["--local", "--threads", "1"]
RANKS = ["--towers", "2", "--members", "2"]
PASS_THROUGH = [*DATA, *RANKS, "--steps", "15"]
NARROW = ["--payload", "bf16", "--chunks", "2", "--stochastic"]
COMPRESSED = [*DATA, *RANKS, "--epochs", "1", "--tower-module", "dlrm", "--compression", "2", "--dtype", "float64"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train with some arguments, once per module; returns the folder."""
    done = {}

    def train(*arguments):
        if arguments not in done:
            done[arguments] = tmp_path_factory.mktemp("run")
            assert main(["train", *arguments, "--out", str(done[arguments])]) == 0
        return done[arguments]

    return train


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def evaluated(capsys, *arguments):
    """The AUC that eval prints, as text."""
    assert main(["eval", *map(str, arguments)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " auc " in line)
    return line.split("│")[2].strip()


def test_flat_and_pass_through_towers_are_the_same_to_the_last_digit(run):
    flat, sptt = (run(*PASS_THROUGH, "--exchange", kind) for kind in ("flat", "sptt"))
    for name in ("auc", "logloss", "valid_auc", "valid_logloss", "peer_bytes_per_step", "id_bytes_per_step"):
        assert summary(flat)[name] == summary(sptt)[name], name
    assert summary(sptt)["auc"] > 0.55, "it has learnt something"
    for ours, theirs in zip(metrics(flat), metrics(sptt), strict=True):
        assert [ours.get(k) for k in ("step", "loss", "valid_auc")] == [
            theirs.get(k) for k in ("step", "loss", "valid_auc")
        ]


def test_column_splits_change_no_digit(tmp_path):
    arguments = ["--towers", "2", "--members", "3", "--split", "columns", "--data", "synthetic:480"]
    figures = []
    for kind in ("flat", "sptt"):
        out = tmp_path / kind
        assert main(["train", *arguments, "--exchange", kind, "--batch-size", "24", "--out", str(out)]) == 0
        figures.append([summary(out)[name] for name in ("auc", "logloss", "valid_auc", "steps")])
    assert figures[0] == figures[1]
    assert figures[0][-1] == 20


def test_a_tower_module_saves_what_it_compresses(run):
    flat, towers = summary(run(*PASS_THROUGH, "--exchange", "flat")), summary(run(*COMPRESSED))
    assert towers["compression"] == 2
    # float64 against float32: twice the bytes.
    assert towers["peer_bytes_per_step"] == 2 * flat["peer_bytes_per_step"] / towers["compression"]


def test_half_the_bytes_and_two_chunks_learn_alike(run, capsys):
    whole, narrow = run(*PASS_THROUGH, "--exchange", "sptt"), run(*PASS_THROUGH, *NARROW)
    assert summary(narrow)["peer_bytes_per_step"] == summary(whole)["peer_bytes_per_step"] / 2
    assert summary(narrow)["tower_bytes_per_step"] == summary(whole)["tower_bytes_per_step"]
    losses = [[line["loss"] for line in metrics(folder) if "loss" in line] for folder in (whole, narrow)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    capsys.readouterr()  # what the runs said
    assert float(evaluated(capsys, narrow, "--local")) == pytest.approx(summary(whole)["auc"], abs=0.01)


@pytest.mark.parametrize(("capability", "amp", "warns"), [("AVX2", True, 1), ("AVX2", False, 0), ("AVX512", True, 0)])
def test_slow_products_are_announced(capability, amp, warns, monkeypatch, caplog):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert main(["train", *DATA, *LOCAL, "--steps", "2", "--device", "cpu", *["--amp"] * amp]) == 0
    assert sum("--amp: this CPU does not multiply in bfloat16" in line for line in caplog.messages) == warns


def test_options_of_tower_modules_that_are_not_there_are_announced(caplog):
    arguments = ["train", *DATA, *LOCAL, "--steps", "1", "--compression", "4", "--tower-columns", "even"]
    assert main([*arguments, "--tower-module", "dlrm"]) == 0
    assert not caplog.messages
    assert main(arguments) == 0
    assert caplog.messages == ["--compression, --tower-columns: nothing to act on without --tower-module"]


def test_summary_and_metrics(run):
    folder = run(*PASS_THROUGH, "--exchange", "sptt")
    figures = summary(folder)
    assert (figures["world_size"], figures["towers"], figures["members"]) == (4, 2, 2)
    assert (figures["epochs"], figures["steps"], figures["seed"]) == (2, 15, 0)
    assert 0.5 < figures["auc"] < figures["best_auc"] < 1
    for name in ("step_ms_median", "samples_per_s", "loader_samples_per_s", "tower_bytes_per_step", "dense_params"):
        assert figures[name] > 0, name
    lines = metrics(folder)
    assert [line["step"] for line in lines if "loss" in line] == [5, 10, 15]
    assert [line["epoch"] for line in lines if "valid_auc" in line] == [1, 2]
    assert lines[0]["loss"] > lines[-2]["loss"]


def test_towers_in_one_process_are_the_towers_on_four_ranks(run):
    spread, local = summary(run(*COMPRESSED)), summary(run(*COMPRESSED, *LOCAL))
    for name in ("auc", "logloss", "valid_auc", "valid_logloss"):
        assert spread[name] == pytest.approx(local[name], rel=1e-9), name
    for name in ("dense_params", "embedding_params", "compression"):
        assert spread[name] == local[name], name
    assert local["world_size"] == 1
    assert local["peer_bytes_per_step"] == 0


def test_tower_modules_at_the_owners_of_tables_are_the_same_model(run, capsys):
    members, owners = run(*COMPRESSED), run(*COMPRESSED, "--placement", "owner")
    capsys.readouterr()
    whole, sliced = summary(members), summary(owners)
    assert (whole["placement"], sliced["placement"]) == ("member", "owner")
    assert sliced["dense_params"] == whole["dense_params"]
    for name in ("auc", "logloss", "valid_auc", "valid_logloss"):
        assert sliced[name] == pytest.approx(whole[name], rel=1e-9), name
    expected = f"{sliced['auc']:.6g}"
    assert evaluated(capsys, owners) == expected
    assert evaluated(capsys, owners, "--local") == expected
    chosen = summary(run(*PASS_THROUGH, "--tower-module", "dlrm", "--placement", "auto"))
    assert chosen["placement"] in ("member", "owner")
    assert main(["train", *COMPRESSED, "--split", "rows", "--placement", "owner"]) == 2
    assert "is split by rows, so that its columns have several owners" in capsys.readouterr().err


def test_eval_reproduces_the_auc_on_ranks_and_in_one_process(run, capsys):
    folder = run(*COMPRESSED)
    capsys.readouterr()
    expected = f"{summary(folder)['auc']:.6g}"
    assert evaluated(capsys, folder) == expected
    assert evaluated(capsys, folder, "--local") == expected
    assert evaluated(capsys, folder, "--local", "--split", "valid") == f"{summary(folder)['valid_auc']:.6g}"
    assert evaluated(capsys, folder, "--local", "--data", "synthetic:400", "--split", "train") != expected


def test_averaged_weights_are_scored_and_kept_wherever_they_are(run, capsys):
    arguments = [*COMPRESSED, "--average-weights", "0.7"]
    spread, local, last = run(*arguments, "--placement", "owner"), run(*arguments, *LOCAL), run(*COMPRESSED, *LOCAL)
    capsys.readouterr()
    figures = summary(spread)
    for name in ("auc", "logloss", "valid_auc", "valid_logloss"):
        assert figures[name] == pytest.approx(summary(local)[name], rel=1e-9), name
        assert figures[name] != pytest.approx(summary(last)[name], rel=1e-6), name
    assert evaluated(capsys, spread) == evaluated(capsys, local) == f"{figures['auc']:.6g}"


def test_eval_on_data_of_another_kind(run, tmp_path, capsys):
    folder = run(*COMPRESSED, *LOCAL)
    capsys.readouterr()
    rows = {
        "sparse": np.zeros((8, 1), np.int32),
        "cards": np.array([1]),
        "label": np.zeros(8),
        "names": np.array(["x"]),
    }
    np.savez(tmp_path / "rows.npz", **rows)
    assert main(["eval", str(folder), "--data", f"npz:{tmp_path}/rows.npz"]) == 2
    assert "is not in rows.npz" in capsys.readouterr().err


def test_the_readmes_torchrun_on_two_hosts_gives_the_metrics_of_the_local_launch(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (command,) = re.findall(r"^torchrun (.*?)$(?<!\\)", readme.replace("\\\n", " "), flags=re.MULTILINE)
    # As it stands, but for the name of the first host and, to be quick, the numbers of rows and steps.
    words = shlex.split(command.replace("HOST0:29500", f"localhost:{free_port()}"))
    words[words.index("--data") + 1] += ":20000"
    words[words.index("--steps") + 1] = "8"
    words[words.index("--out") + 1] = str(tmp_path / "two hosts")
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words],
            env=without_ranks(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [agent.communicate(timeout=120)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(said)
    assert sum("trained:" in text for text in said) == 1, "rank 0 alone reports"
    words = words[words.index("train") :]
    words[words.index("--out") + 1] = str(tmp_path / "one host")
    assert main(words) == 0
    ours, theirs = summary(tmp_path / "two hosts"), summary(tmp_path / "one host")
    assert (ours["towers"], ours["members"]) == (2, 2)
    for name in ("auc", "logloss", "valid_auc", "valid_logloss", "peer_bytes_per_step"):
        assert ours[name] == theirs[name], name


def test_early_stop_reports_and_keeps_the_best_epoch(tmp_path, capsys):
    out = tmp_path / "out"
    # A few hundred rows are learnt by heart: the validation AUC soon falls.
    arguments = ["--data", "synthetic:500", "--batch-size", "50", "--table-lr", "0.3", *LOCAL]
    assert main(["train", *arguments, "--epochs", "40", "--early-stop", "2", "--out", str(out)]) == 0
    figures = summary(out)
    valid = [line["valid_auc"] for line in metrics(out) if "valid_auc" in line]
    assert figures["epochs"] == len(valid) < 40
    assert figures["valid_auc"] == max(valid)
    assert figures["best_epoch"] == valid.index(max(valid)) + 1 == len(valid) - 2
    capsys.readouterr()
    assert evaluated(capsys, out) == f"{figures['auc']:.6g}"
    assert evaluated(capsys, out, "--split", "valid") == f"{max(valid):.6g}"
    rows = {f"f{i:02}": np.zeros(8, np.int32) for i in range(26)}  # to score, none of them to stop by
    arrays = {"sparse": np.stack(list(rows.values()), 1), "cards": np.ones(26, int), "names": np.array(list(rows))}
    arrays |= {"label": np.arange(8) % 2, "dense": np.zeros((8, 4)), "split": np.full(8, 2)}
    np.savez(tmp_path / "rows.npz", **arrays)
    assert evaluated(capsys, out, "--data", f"npz:{tmp_path}/rows.npz") == "0.5"


@pytest.mark.parametrize("where", [[], LOCAL], ids=["ranks", "local"])
def test_rows_rounded_in_training_are_rounded_in_eval(where, run, capsys):
    folder = run(*COMPRESSED, "--payload", "fp8", *where)
    capsys.readouterr()
    expected = f"{summary(folder)['auc']:.6g}"
    assert evaluated(capsys, folder, "--local") == evaluated(capsys, folder) == expected


def test_overwrite(tmp_path, capsys):
    arguments = [
        "train",
        "--data",
        "synthetic:200",
        "--local",
        "--steps",
        "2",
        "--batch-size",
        "32",
        "--out",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    (tmp_path / "notes.txt").write_text("mine")
    assert main(arguments) == 2
    assert main([*arguments, "--overwrite"]) == 0
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "model").is_dir()
    assert not (tmp_path / "model.unfinished").exists()


@pytest.mark.parametrize("model", ["dlrm", "dcn"])
@pytest.mark.parametrize("tower_module", ["none", "dlrm", "dcn"])
def test_every_model_trains_with_every_tower_module(model, tower_module, tmp_path):
    arguments = ["--model", model, "--tower-module", tower_module, "--towers", "3", *LOCAL]
    assert main(["train", *arguments, "--data", "synthetic:500", "--batch-size", "64", "--out", str(tmp_path)]) == 0
    losses = [line["loss"] for line in metrics(tmp_path) if "loss" in line]
    assert all(0 < loss < 1 for loss in losses)
