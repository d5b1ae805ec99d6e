"""The `partition` command, from rows to a file that `train` reads."""

import dataclasses
import io
import json
import os
import sys

import numpy as np
import pytest
import torch

import dmt_kernels.train.partition as partition_module
from dmt_kernels.cli import main
from dmt_kernels.spec import Partition, derive_seed
from dmt_kernels.towers import share_columns
from dmt_kernels.train.assemble import build_model, make_loader, set_up
from dmt_kernels.train.config import TrainConfig, resolve_topology
from dmt_kernels.train.flat_run import FlatRun, flat_setup, train_flat
from dmt_kernels.train.importance import permutation_importance
from dmt_kernels.train.partition import silence


@pytest.mark.parametrize("affinity", ["alignment", "cosine", "ids", "matrix.csv"])
def test_towers_are_written_shown_and_trained_with(affinity: str, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savetxt("matrix.csv", np.eye(26), delimiter=",")
    towers = tmp_path / "towers.json"
    data = ["--data", "synthetic:512", "--batch-size", "64"]
    options = ["--towers", "2", "--affinity", affinity, "--steps", "2", "--pin", "f03=1", "--out", str(towers)]
    assert main(["partition", *data, *options]) == 0
    shown = capsys.readouterr().out
    assert "loads of 2 towers" in shown and "proven to" in shown and "importance (log loss" in shown
    assert "the widest tower sends" in shown
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


@pytest.mark.parametrize(
    ("model", "over_arch_width", "unit"), [("dcn", "flat", 1), ("dlrm", "flat", 1), ("dlrm", "towers", 4)]
)
@pytest.mark.parametrize("columns", ["importance", "within"])
def test_towers_have_the_columns_that_importance_gives(model, over_arch_width, unit, columns, tmp_path) -> None:
    config = TrainConfig("synthetic:512", local=True, model=model, tower_module=model, towers=3, compression=4)
    config = dataclasses.replace(config, tower_columns=columns, over_arch_width=over_arch_width)
    config = resolve_topology(config, None, None)
    names = [f"f{i:02}" for i in range(26)]
    importance = {name: 2.0 ** (-i % 7) for i, name in reversed(list(enumerate(names)))}
    Partition((tuple(names[:9]), tuple(names[20:]), tuple(names[9:20])), importance).save(tmp_path / "t.json")
    setup = set_up(dataclasses.replace(config, partition=str(tmp_path / "t.json")))
    assert dict(setup.facts())["importance of 'f03'"] == importance["f03"]
    tables, towers = setup.plan.feature_tables, setup.plan.partition.towers
    known = [
        [[f(name) for name in tower] for tower in towers]
        for f in (lambda name: 16, lambda name: tables[name].rows, importance.get)
    ]
    expected = share_columns(*known, 4, unit)
    if columns == "within":
        expected = [share_columns(*([part] for part in parts), 4, unit)[0] for parts in zip(*known, strict=True)]
    built = build_model(setup, None)
    modules = built.exchange.tower_modules.values()
    assert [module.out_width for module in modules] == [sum(own) for own in expected]
    if over_arch_width == "towers":
        return
    projections = [module.project.weight if model == "dcn" else module.tower.weight for module in modules]
    for weight, own in zip(projections, expected, strict=True):
        assert tuple((weight.unflatten(1, (-1, 16)).abs().sum(2) > 0).sum(0).tolist()) == own
    both = built.expand.weight @ torch.block_diag(*projections)
    apart = torch.block_diag(*(torch.ones(16, 16) for _ in names))
    assert not both[apart == 0].any()


def test_pictures_are_of_these_towers(tmp_path, capsys) -> None:
    given = ["--data", "synthetic:512", "--towers", "2", "--steps", "1", "--out", str(tmp_path / "t.json")]
    assert main(["partition", *given]) == 0
    assert main(["partition", *given, "--strategy", "strided"]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"t_affinity.png"}  # there is no layout
    assert main(["partition", *given, "--strategy", "strided", "--no-importance"]) == 0
    assert not list(tmp_path.glob("*.png"))


def test_importance_is_written_under_the_features_names(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(partition_module, "permutation_importance", lambda run, seed: range(26))
    towers = tmp_path / "towers.json"
    words = ["--data", "synthetic:512", "--towers", "3", "--steps", "1", "--out", str(towers)]
    assert main(["partition", *words]) == 0
    assert json.loads(towers.read_text())["importance"] == {f"f{i:02}": i for i in range(26)}


def test_a_run_that_diverged_says_nothing_of_features(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(partition_module, "permutation_importance", lambda run, seed: [float("nan")] * 26)
    towers = tmp_path / "towers.json"
    assert main(["partition", "--data", "synthetic:512", "--towers", "3", "--steps", "1", "--out", str(towers)]) == 2
    assert "diverged" in capsys.readouterr().err
    assert not towers.exists()


@pytest.mark.parametrize(("features", "rows"), [(64, 2000), (512, 1024), (2000, 512)])
def test_many_features_are_judged_by_fewer_rows(features: int, rows: int) -> None:
    class Counting(torch.nn.Module):
        """Counts rows."""

        exchange = torch.nn.Identity()
        seen = 0

        def forward(self, dense, sparse):
            self.seen += len(dense)
            return dense[:, 0]

    pooled = torch.zeros(2000, features)
    run = FlatRun(Counting(), (1,) * features, torch.zeros(2000, 1), pooled, torch.zeros(2000))
    assert permutation_importance(run) == [0.0] * features
    assert run.model.seen == (features + 1) * rows


def test_a_flat_run_learns_and_shows_the_rows_it_has_not_seen() -> None:
    config = TrainConfig("synthetic:4096", batch_size=100, steps=60, table_lr=0.1)
    setup = flat_setup(config)
    run, untrained = train_flat(setup), train_flat(flat_setup(dataclasses.replace(config, steps=1)))
    batches = make_loader(setup, "valid", None, torch.device("cpu"))
    labels = torch.cat([batch.label[batch.weight > 0] for batch in batches])
    assert torch.equal(run.label, labels)
    assert run.pooled.shape == (len(labels), 26 * 16) and len(run.dense) == len(labels)
    assert sum(permutation_importance(run)) > 5 * abs(sum(permutation_importance(untrained)))


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
    pooled, dense = torch.randn(3000, 6, generator=generator), torch.randn(3000, 1, generator=generator)
    run = FlatRun(Linear(), (2, 1, 3), dense, pooled, (4 * pooled[:, 0] + 0.4 * pooled[:, 2] > 0).float())
    first, second, third = permutation_importance(run)
    assert first > 1 and 0 < second < first / 10 and third == 0
    assert isinstance(run.model.exchange, torch.nn.Identity)
    shuffled = pooled.clone()
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(derive_seed(0, "importance")))
    shuffled[:, :2] = pooled[order, :2]
    losses = [
        torch.nn.functional.binary_cross_entropy_with_logits(4 * x[:, 0] + 0.4 * x[:, 2] + dense[:, 0], run.label)
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
        (["--slack", "bytes=1,bytes=2"], "bytes=1,bytes=2"),
        (["--seconds", "nan"], "--seconds nan"),
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
