"""The `partition` command, from rows to a file that `train` reads."""

import io
import json
import os
import sys

import pytest

from dmt_kernels.cli import main
from dmt_kernels.train.partition import silence


@pytest.mark.parametrize("affinity", ["alignment", "ids"])
def test_towers_are_written_shown_and_trained_with(affinity: str, tmp_path, capsys) -> None:
    towers = tmp_path / "towers.json"
    data = ["--data", "synthetic:512", "--batch-size", "64"]
    options = ["--towers", "2", "--affinity", affinity, "--steps", "2", "--pin", "f03=1", "--out", str(towers)]
    assert main(["partition", *data, *options]) == 0
    shown = capsys.readouterr().out
    assert "loads of 2 towers" in shown and "proven to" in shown
    assert "f03" in json.loads(towers.read_text())["towers"][1]
    assert {path.name for path in tmp_path.glob("*.png")} == {"towers_affinity.png", "towers_layout.png"}
    assert main(["train", *data, "--local", "--towers", "2", "--steps", "1", "--partition", str(towers)]) == 0


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--towers", "27"], "27 towers"),
        (["--strategy", "magic"], "magic"),
        (["--affinity", "magic"], "magic"),
        (["--slack", "weight=1"], "weight"),
        (["--slack", "much"], "much"),
        (["--pin", "f99=0"], "f99"),
        (["--out", "/no/such/towers.json"], "/no/such"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_bad_input_is_one_sentence(arguments: list[str], culprit: str, tmp_path, capsys) -> None:
    out = tmp_path / "towers.json"
    given = ["--data", "synthetic:64", "--towers", "2", "--out", str(out)]
    assert main(["partition", *given, *arguments]) == 2
    said = capsys.readouterr().err
    assert culprit in said and said.count("\n") == 1
    assert not out.exists()


def test_the_solver_prints_nothing(capfd) -> None:
    with silence():
        os.write(1, b"from below\n")
    print("from here")
    assert capfd.readouterr().out == "from here\n"


@pytest.mark.parametrize("closed", [False, True], ids=["none", "closed"])
def test_without_standard_output_the_solver_goes_on(closed: bool, monkeypatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream if closed else None)
    with silence():
        pass
