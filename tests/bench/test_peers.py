"""Peers that are not here are said to be, those that are take part on all ranks or on none, and all must agree."""

import importlib
import importlib.util
import sys
import types

import pytest
import torch

from bench import __main__ as command
from bench import baselines, ranks
from bench.agreement import Disagreement
from bench.comm import two_stage
from bench.registry import Setting
from bench.runner import Result, Timing
from bench.train_step import Stepper, build
from dmt_kernels.comm import build_mesh
from tests.ranks import run_ranks

RELEASE = f"1.{int(torch.__version__.split('.')[1]) - 5}.0"
BASELINE = "bench.baselines.torchrec"


def hide(monkeypatch, package):
    """Until the test ends there is no such package, nor what was imported from it."""
    for name in [name for name in sys.modules if name == BASELINE or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture
def fresh():
    baselines.obstacle.cache_clear()
    yield
    baselines.obstacle.cache_clear()


def test_a_missing_peer_is_named_with_the_versions_that_belong_to_this_torch(monkeypatch, fresh):
    hide(monkeypatch, "fbgemm_gpu")
    hide(monkeypatch, "torchrec")
    importlib.import_module("bench.baselines.torch")  # which is `torch` to the package then
    line = baselines.obstacle("torchrec")
    assert line.startswith("torchrec is not installed, its columns are empty")
    assert f"pip install --no-deps fbgemm-gpu-cpu=={RELEASE} torchrec=={RELEASE} && pip install" in line


def test_a_peer_of_another_torch_is_told_from_a_missing_one(monkeypatch, fresh, tmp_path):
    (tmp_path / "torchrec").mkdir()
    (tmp_path / "torchrec" / "__init__.py").write_text("raise AttributeError('no such\\n  operator')")
    hide(monkeypatch, "torchrec")
    monkeypatch.delitem(sys.modules, "torchrec")
    monkeypatch.setitem(sys.modules, "fbgemm_gpu", types.ModuleType("fbgemm_gpu"))
    monkeypatch.syspath_prepend(tmp_path)
    line = baselines.obstacle("torchrec")
    assert line.startswith("torchrec cannot be loaded (no such operator), its columns are empty")


def test_a_suite_has_the_peers_that_have_something_for_it():
    assert baselines.of_suite("ops", ["torch", "torchrec", "fbgemm"]) == ("torch", "fbgemm")
    assert baselines.of_suite("comm") == ("torchrec", "torch")
    assert baselines.of_suite("train") == ("torchrec",)


def test_a_peer_that_is_not_here_has_an_empty_column_and_one_line(monkeypatch, capsys):
    asked = []
    timings = {"ours": Timing(1, 2, 3, 9), "flat": Timing(2, 3, 4, 9)}
    part = {
        "results": [Result("step/x", timings).to_json()],
        "failures": {},
        "facts": {"ranks": "2"},
        "obstacles": {"torchrec": "torchrec is not here"},
    }
    monkeypatch.setattr(ranks, "run_suite", lambda *args: asked.append(args) or part)
    assert command.main(["train", "--peer", "fbgemm,torchrec"]) == 0
    out = capsys.readouterr().out
    heading, row = [line for line in out.splitlines() if "| case" in line or "| step/x" in line]
    cells = list(zip(*([cell.strip() for cell in line.split("|")] for line in (heading, row)), strict=True))
    assert cells[1:-1] == [
        ("case", "step/x"),
        ("ours, ms", "1.00 2.00 3.00"),
        ("flat, ms", "2.00 3.00 4.00"),
        ("x", "1.50"),
        ("torchrec, ms", ""),
        ("x", ""),
    ]
    assert out.count("torchrec is not here") == 1
    assert asked[0][-1] == ("torchrec",)


class Twin:
    """Ours in the place of a peer, with something wrong."""

    def __init__(self, wrong, setup, mesh):
        self.stepper, self.wrong = Stepper(setup.config, mesh), wrong
        if wrong == "rate":
            shards = self.stepper.model.exchange.shards
            shards.optimizer = type(shards.optimizer)(lr=shards.optimizer.lr * 1.001)

    def __call__(self):
        return self.stepper() + (1e-3 if self.wrong == "loss" else 0)

    def tables(self):
        shards = self.stepper.model.exchange.shards
        tables = {s.table.name: t.clone() for s, t in zip(shards.shards, shards.tables.buffers(), strict=True)}
        for table in list(tables.values())[:1] if self.wrong == "a row" else []:
            table[0] += 1
        return tables


def _complaint(rank, wrong):
    peer = types.ModuleType(BASELINE)
    peer.train_step = lambda model, setup, mesh, batches: Twin(wrong, setup, mesh)
    sys.modules[BASELINE] = peer
    work = build("dlrm", "none", 16, Setting(("torchrec",), build_mesh(2)))
    try:
        work.check()
    except Disagreement as error:
        return str(error)
    return list(work.contenders())


@pytest.mark.distributed
@pytest.mark.parametrize("wrong", ["", "a row", "rate", "loss"])
def test_a_peer_must_take_the_same_steps(wrong):
    for found in run_ranks(_complaint, 2, wrong):
        if wrong in ("", "a row"):  # which rounding can explain
            assert found == ["ours", "flat", "torchrec"]
        elif wrong == "rate":
            assert "rows of tables, flat and torchrec" in found
        else:
            assert "losses, flat and torchrec" in found


def _take_part(rank):
    if rank == 0:
        sys.modules[BASELINE] = types.ModuleType(BASELINE)
    else:
        sys.modules["fbgemm_gpu"] = sys.modules["torchrec"] = None
    return baselines.obstacle("torchrec") is None, ranks._obstacles(["torchrec"], build_mesh(2))


@pytest.mark.distributed
def test_a_peer_that_one_rank_misses_takes_part_on_none():
    (here, first), (there, second) = run_ranks(_take_part, 2)
    assert (here, there) == (True, False)
    assert first == second and first["torchrec"].startswith("torchrec is not installed")


def _check_torchrec(rank):
    setting = Setting(("torchrec",), build_mesh(2))
    works = [build("dlrm", "none", 64, setting), two_stage.build(1 << 16, 1, setting)]
    for work in works:
        work.check()
    return [list(work.contenders()) for work in works]


@pytest.mark.distributed
@pytest.mark.skipif(importlib.util.find_spec("torchrec") is None, reason="needs TorchRec")
def test_torchrec_agrees():
    for found in run_ranks(_check_torchrec, 2):
        assert found == [["ours", "flat", "torchrec"]] * 2
