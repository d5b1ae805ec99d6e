"""The `partition` command, from rows to a file that `train` reads."""

import io
import json
import os
import sys

import pytest
import torch

import dmt_kernels.train.partition as partition_module
from dmt_kernels.cli import main
from dmt_kernels.spec import derive_seed
from dmt_kernels.train.assemble import build_model, set_up
from dmt_kernels.train.config import TrainConfig, resolve_topology
from dmt_kernels.train.flat_run import FlatRun
from dmt_kernels.train.importance import permutation_importance
from dmt_kernels.train.partition import silence


@pytest.mark.parametrize("affinity", ["alignment", "ids"])
def test_towers_are_written_shown_and_trained_with(affinity: str, tmp_path, capsys) -> None:
    towers = tmp_path / "towers.json"
    data = ["--data", "synthetic:512", "--batch-size", "64"]
    options = ["--towers", "2", "--affinity", affinity, "--steps", "2", "--pin", "f03=1", "--out", str(towers)]
    assert main(["partition", *data, *options]) == 0
    shown = capsys.readouterr().out
    assert "loads of 2 towers" in shown and "proven to" in shown and "importance (log loss" in shown
    assert "f03" in json.loads(towers.read_text())["towers"][1]
    assert {path.name for path in tmp_path.glob("*.png")} == {"towers_affinity.png", "towers_layout.png"}
    assert json.loads(towers.read_text())["importance"].keys() == {f"f{i:02}" for i in range(26)}
    assert main(["train", *data, "--local", "--towers", "2", "--steps", "1", "--partition", str(towers)]) == 0


def test_importance_shares_columns_out_and_stays_with_the_model(tmp_path, capsys) -> None:
    data = ["--data", "synthetic:2048", "--batch-size", "64"]
    towers, run = tmp_path / "towers.json", tmp_path / "run"
    assert main(["partition", *data, "--towers", "2", "--strategy", "strided", "--out", str(towers)]) == 0
    options = ["--local", "--towers", "2", "--tower-module", "dlrm", "--steps", "4", "--partition", str(towers)]
    widths = {}
    for columns in ("even", "within", "importance"):
        out = run / columns
        words = ["train", *data, *options, "--compression", "4", "--tower-columns", columns, "--out", str(out)]
        assert main(words) == 0
        setup = set_up(resolve_topology(TrainConfig.load(out / "config.json"), None, None))
        widths[columns] = [t.out_width for t in build_model(setup, None).exchange.tower_modules.values()]
        summary = json.loads((out / "summary.json").read_text())
        assert summary["widest_tower"] == pytest.approx(max(widths[columns]) / 52)
        capsys.readouterr()
        assert main(["eval", str(out)]) == 0
        assert f"{summary['auc']:.6g}" in capsys.readouterr().out
    assert widths["even"] == widths["within"] == [52, 52]
    assert sum(widths["importance"]) == 104


def test_without_importance_nothing_is_trained_for_towers_that_need_no_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(partition_module, "train_flat", None)
    for i, how in enumerate((["--strategy", "random"], ["--affinity", "ids"])):
        out = tmp_path / f"{i}.json"
        given = ["--data", "synthetic:512", "--towers", "2", "--no-importance", "--out", str(out)]
        assert main(["partition", *given, *how]) == 0
        assert "importance" not in json.loads(out.read_text())


def test_importance_is_what_shuffling_a_feature_costs() -> None:
    class Linear(torch.nn.Module):
        """A logit of the first feature's first column and the second's, which matters a tenth."""

        def __init__(self):
            super().__init__()
            self.exchange = torch.nn.Identity()

        def forward(self, dense, sparse):
            pooled = self.exchange(sparse)
            return 4 * pooled[:, 0] + 0.4 * pooled[:, 2] + dense[:, 0]

    generator = torch.Generator().manual_seed(0)
    pooled, dense = torch.randn(3000, 6, generator=generator), torch.zeros(3000, 1)
    run = FlatRun(Linear(), (2, 1, 3), dense, pooled, (4 * pooled[:, 0] + 0.4 * pooled[:, 2] > 0).float())
    first, second, third = permutation_importance(run)
    assert first > 1 and 0 < second < first / 10 and third == 0
    assert isinstance(run.model.exchange, torch.nn.Identity)
    shuffled = pooled.clone()
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(derive_seed(0, "importance")))
    shuffled[:, :2] = pooled[order, :2]
    losses = [
        torch.nn.functional.binary_cross_entropy_with_logits(4 * x[:, 0] + 0.4 * x[:, 2], run.label)
        for x in (pooled, shuffled)
    ]
    assert first == pytest.approx(float(losses[1] - losses[0]), rel=1e-5)


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
