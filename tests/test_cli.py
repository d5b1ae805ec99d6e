"""The command line finds bad input before it starts or writes anything, and says it in one sentence."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dmt_kernels.cli import build_parser, main

ROWS = 64


def write_npz(folder, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "sparse": rng.integers(0, 5, (ROWS, 3), dtype=np.int32),
        "cards": np.array([5, 5, 5]),
        "names": np.array(["a", "b", "c"]),
        "label": rng.integers(0, 2, ROWS).astype(np.float32),
        "dense": rng.random((ROWS, 2), dtype=np.float32),
        "split": np.repeat(np.array([0, 0, 1, 2], dtype=np.uint8), ROWS // 4),
    } | changes
    path = folder / "rows.npz"
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return f"npz:{path}"


def write_json(folder, value):
    path = folder / "given.json"
    path.write_text(json.dumps(value))
    return str(path)


def tables(*entries, rows=5):
    return {"tables": [{"name": name, "rows": rows, "dim": 4, "features": list(f)} for name, f in entries]}


def towers(folder, *features):
    return write_json(folder, {"towers": [list(tower) for tower in features]})


def nan_label():
    label = np.zeros(ROWS, dtype=np.float32)
    label[7] = np.nan
    return label


def one_large_id():
    sparse = np.zeros((ROWS, 3), dtype=np.int32)
    sparse[9, 1] = 5
    return sparse


# name: (arguments, given a folder for files; what the sentence must name). Data is a small .npz by default.
BAD_INPUT = {
    "unknown data source": (lambda f: ["--data", "parquet:x"], "parquet"),
    "missing npz": (lambda f: ["--data", "npz:/no/such.npz"], "/no/such.npz"),
    "missing criteo": (lambda f: ["--data", "criteo:/no/such.tsv"], "/no/such.tsv"),
    "missing columns": (lambda f: ["--data", "columns:/no/such"], "/no/such"),
    "synthetic without rows": (lambda f: ["--data", "synthetic:0"], "synthetic"),
    "unknown option": (lambda f: ["--frobnicate"], "frobnicate"),
    "unknown dtype": (lambda f: ["--dtype", "float13"], "float13"),
    "unknown model": (lambda f: ["--model", "gpt"], "gpt"),
    "batch size is no number": (lambda f: ["--batch-size", "many"], "many"),
    "batch not shared out evenly": (lambda f: ["--towers", "3", "--batch-size", "16"], "16"),
    "no steps": (lambda f: ["--steps", "0"], "--steps"),
    "epochs and steps": (lambda f: ["--steps", "3", "--epochs", "1"], "--epochs"),
    "compression 0": (lambda f: ["--tower-module", "dlrm", "--compression", "0"], "--compression 0"),
    "compression below 0": (lambda f: ["--compression", "-2"], "--compression -2"),
    "compression not a number": (lambda f: ["--compression", "nan"], "--compression nan"),
    "learning rate 0": (lambda f: ["--dense-lr", "0"], "--dense-lr"),
    "tower rate 0": (lambda f: ["--tower-lr", "0"], "--tower-lr"),
    "negative table rate": (lambda f: ["--table-lr", "-1"], "lr"),
    "table rate not a number": (lambda f: ["--table-lr", "nan"], "lr nan"),
    "table decay not finite": (lambda f: ["--table-weight-decay", "inf"], "weight_decay inf"),
    "an average that never moves": (lambda f: ["--average-weights", "1"], "--average-weights 1"),
    "early stop without rows to validate": (
        lambda f: ["--early-stop", "1", "--data", write_npz(f, split=np.zeros(ROWS, int))],
        "--early-stop",
    ),
    "table with half a row": (lambda f: ["--tables", write_json(f, tables(("t", "abc"), rows=7.5))], "7.5"),
    "table without a name": (lambda f: ["--tables", write_json(f, tables(("", "abc")))], "named ''"),
    "tower module on the flat road": (lambda f: ["--exchange", "flat", "--tower-module", "dlrm"], "--tower-module"),
    "tower payload on the flat road": (lambda f: ["--exchange", "flat", "--tower-payload", "bf16"], "--tower-payload"),
    "too many chunks": (lambda f: ["--chunks", "65"], "--chunks 65 is above 64"),
    "chunks by a word": (lambda f: ["--chunks", "many"], "--chunks 'many' is no number and not 'auto'"),
    "no chunk": (lambda f: ["--chunks", "0"], "--chunks 0"),
    "unknown payload": (lambda f: ["--payload", "int4"], "int4"),
    "no time": (lambda f: ["--timeout", "0"], "--timeout 0"),
    "too much time": (lambda f: ["--timeout", "1000001"], "--timeout 1000001"),
    "CUDA where there is none": (lambda f: ["--device", "cuda", "--towers", "97", "--batch-size", "97"], "cuda"),
    "more towers than features or rows of a batch": (lambda f: ["--towers", "100"], "100 towers"),
    "more towers than features": (lambda f: ["--towers", "4"], "4 towers"),
    "npz of other shapes": (lambda f: ["--data", write_npz(f, label=np.zeros(ROWS + 1))], "sparse"),
    "npz with other cards": (lambda f: ["--data", write_npz(f, cards=np.array([5, 5]))], "cards"),
    "npz with an id out of range": (lambda f: ["--data", write_npz(f, sparse=one_large_id())], "'b'"),
    "npz with a NaN label": (lambda f: ["--data", write_npz(f, label=nan_label())], "label"),
    "npz without features": (lambda f: ["--data", write_npz(f, sparse=None)], "feature"),
    "table with no feature": (lambda f: ["--tables", write_json(f, tables(("t", [])))], "table 't'"),
    "table with an unknown feature": (lambda f: ["--tables", write_json(f, tables(("t", ["z"])))], "'z'"),
    "table with too few rows": (lambda f: ["--tables", write_json(f, tables(("t", "abc"), rows=4))], "'a'"),
    "feature with no table": (lambda f: ["--tables", write_json(f, tables(("t", ["a", "c"])))], "'b'"),
    "tables file of another form": (lambda f: ["--tables", write_json(f, [1, 2])], "given.json"),
    "missing tables file": (lambda f: ["--tables", "/no/t.json"], "/no/t.json"),
    "missing partition file": (lambda f: ["--partition", "/no/p.json"], "/no/p.json"),
    "partition file that is a folder": (lambda f: ["--partition", str(f)], "cannot be read"),
    "no rows to train on": (lambda f: ["--data", write_npz(f, split=np.full(ROWS, 2))], "no training rows"),
    "partition of fewer towers": (lambda f: ["--partition", towers(f, "abc"), "--towers", "2"], "1 towers"),
    "partition without a feature": (lambda f: ["--partition", towers(f, "a", "b"), "--towers", "2"], "'c'"),
}


def complaint(capsys, argv):
    """The sentence that bad input gets."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("where", [[], ["--local"]], ids=["distributed", "local"])
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(case, where, tmp_path, capsys):
    if where and case == "batch not shared out evenly":
        pytest.skip("one process shares a batch with nobody")
    arguments, culprit = BAD_INPUT[case]
    out = tmp_path / "out"
    given = arguments(tmp_path)
    data = [] if "--data" in given else ["--data", write_npz(tmp_path)]
    assert culprit in complaint(capsys, ["train", *given, *data, *where, "--out", str(out)])
    assert not out.exists()


def test_a_local_payload_needs_a_batch_that_ranks_could_share(tmp_path, capsys):
    command = ["train", "--local", "--data", write_npz(tmp_path), "--towers", "3", "--batch-size", "16"]
    assert complaint(capsys, [*command, "--payload", "bf16"]) == (
        "dmt_kernels: --batch-size 16 cannot be shared out evenly to 3 ranks that --payload bf16 rounds for\n"
    )


@pytest.mark.parametrize(
    "option",
    [
        ["--chunks", "2"],
        ["--chunks", "auto"],
        ["--tower-payload", "int8"],
        ["--payload", "bf16", "--exchange", "flat"],
        ["--stochastic", "--exchange", "flat"],
    ],
    ids=" ".join,
)
def test_what_is_said_of_the_wire_needs_one(option, capsys):
    assert complaint(capsys, ["train", "--local", *option]) == (
        f"dmt_kernels: --local sends nothing between ranks: {option[0]} has nothing to act on\n"
    )


def test_a_run_is_not_overwritten_unasked(tmp_path, capsys):
    (tmp_path / "config.json").write_text("mine")
    assert str(tmp_path) in complaint(capsys, ["train", "--data", "synthetic:64", "--out", str(tmp_path)])
    assert (tmp_path / "config.json").read_text() == "mine"


@pytest.mark.parametrize("out", ["file", "file/out"])
def test_out_cannot_be_a_folder(out, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in complaint(
        capsys, ["train", "--data", "synthetic:64", "--out", str(tmp_path / out)]
    )


@pytest.mark.parametrize("files", [[], ["config.json"]], ids=["empty folder", "no configuration"])
def test_eval_needs_a_finished_run(files, tmp_path, capsys):
    for file in files:
        (tmp_path / file).write_text("{}")
    assert str(tmp_path) in complaint(capsys, ["eval", str(tmp_path)])


def test_eval_of_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert "cannot be read" in complaint(capsys, ["eval", str(tmp_path / "file")])


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--towers", "0"], "0 towers"),
        (["--pin", "a=0", "--pin", "a=1"], "--pin names a feature twice"),
        (["--pin", "a=first"], "'a=first' is not of the form FEATURE=TOWER"),
        (["--slack", "bytes=much"], "'bytes=much' is not of the form a number, or LOAD=number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_partition_of_bad_input(arguments, culprit, tmp_path, capsys):
    out = tmp_path / "towers.json"
    given = ["--data", write_npz(tmp_path), "--towers", "2", "--out", str(out), *arguments]
    assert culprit in complaint(capsys, ["partition", *given])
    assert not out.exists()


def test_a_partition_needs_a_folder_to_be_written_to(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    given = ["partition", "--data", write_npz(tmp_path), "--towers", "2", "--out", str(tmp_path / "file" / "t.json")]
    assert "is a folder, or in one that does not exist" in complaint(capsys, given)


def test_a_partition_needs_rows_to_learn_from(tmp_path, capsys):
    data = write_npz(tmp_path, split=np.full(ROWS, 2))
    given = ["partition", "--data", data, "--towers", "2", "--out", str(tmp_path / "towers.json")]
    assert "no training rows" in complaint(capsys, given)


@pytest.mark.parametrize(
    ("world", "arguments"),
    [(3, ["--towers", "2", "--members", "2"]), (4, ["--towers", "3"]), (5, ["--members", "2"]), (2, ["--local"])],
    ids=lambda value: " ".join(value) if isinstance(value, list) else f"world {value}",
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_world_that_does_not_fit_is_complained_of_once(rank, world, arguments, monkeypatch, capsys):
    monkeypatch.setattr("dmt_kernels.cli.PAUSE_S", 0)
    for name, value in {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}.items():
        monkeypatch.setenv(name, str(value))
    assert main(["train", "--data", "synthetic:64", *arguments]) == 2
    said = capsys.readouterr().err
    assert (str(world) in said) if rank == 0 else (said == "")


@pytest.mark.parametrize("command", ["train", "eval", "partition", "demo", "convert", "info"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert command in capsys.readouterr().out


def test_every_option_of_a_run_is_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    options = "model exchange tower-module towers members data batch-size epochs steps embedding-dim compression seed"
    options += " chunks payload tower-payload stochastic timeout"
    for option in [*options.split(), "early-stop", "device", "local", "out"]:
        assert f"--{option}" in shown


def test_convert_then_info(tmp_path, capsys):
    assert main(["convert", write_npz(tmp_path), "--out", str(tmp_path / "columns")]) == 0
    assert (tmp_path / "columns" / "meta.json").is_file()
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out


def test_info_answers_without_torch():
    # Written to a module of its own: the import of torch must fail from the first line on.
    script = "import sys; sys.modules['torch'] = None; from dmt_kernels.cli import main; sys.exit(main(['info']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "unknown without torch" in done.stdout


def test_every_command_of_the_readme_parses():
    readme = (Path(__file__).parents[1] / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"(?:python )?-m dmt_kernels (.*?)(?:#.*)?$", readme, flags=re.MULTILINE)
    parsed = [
        build_parser().parse_args(shlex.split(command)) for command in commands if not command.startswith("train`")
    ]
    assert len(parsed) >= 5
