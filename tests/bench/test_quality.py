"""The quality bench: what it runs next, its records, and a tiny grid from end to end."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bench.quality.__main__ import _parser, _plan, main
from bench.quality.grid import TUNING_SEED, Cell, Plan, grid
from bench.quality.partitions import choose_towers
from bench.quality.provenance import code, made_otherwise
from bench.quality.records import Records, key_of
from bench.quality.search import Search
from bench.quality.show import first_epoch_at, tables
from bench.quality.space import draw_trials
from bench.quality.statistics import Estimate
from bench.quality.study import Study, conduct
from bench.quality.training import run
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.data import SPLITS
from tests.train.data.sources import npz_arrays, save_npz

CELL = Cell("dlrm", 2, 2.0, "coherent")


def test_the_grid_begins_with_the_first_partition_and_ends_with_payloads():
    cells = grid(["dlrm", "dcn"], [2, 4], [1.0, 2.0], ["coherent", "random"], ["fp8"])
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * 2 * 2
    assert all(cell.partition == "coherent" for cell in cells[:8])
    assert all(cell.payload == "fp8" for cell in cells[16:])
    assert str(cells[-1]) == "dcn T=4 CR=2 random fp8"
    assert cells[-1].twin == Cell("dcn")


def test_a_line_that_was_cut_off_is_forgotten(tmp_path):
    path = tmp_path / "runs.jsonl"
    records = Records(path)
    records.add({"spec": {"a": 1, "b": 2}, "auc": 0.5})
    with path.open("a") as file:
        file.write('{"spec": {"a"')
    again = Records(path)
    assert len(again) == 1
    assert again.find({"b": 2, "a": 1}) == {"spec": {"a": 1, "b": 2}, "auc": 0.5}
    again.add({"spec": {"a": 2}})
    assert [json.loads(line)["spec"]["a"] for line in path.read_text().splitlines()] == [1, 2]


def test_towers_are_kept_for_what_they_were_chosen_for(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.quality.partitions.STEPS", 3)
    config = TrainConfig(data="synthetic:512", towers=2)
    first = choose_towers("random", config, 0, tmp_path)
    assert choose_towers("random", dataclasses.replace(config, dense_lr=0.1), 0, tmp_path) == first
    others = [{"data": "synthetic:1024"}, {"embedding_dim": 8}, {"hash_rows": 10}, {"towers": 4}]
    found = [choose_towers("random", dataclasses.replace(config, **other), 0, tmp_path) for other in others]
    assert len({first, *found}) == len(list(tmp_path.iterdir())) == 5


def test_runs_of_other_sources_are_named():
    runs = [{}, {"code": {"revision": "abc", "sources": "0"}}, {"code": code()}]
    assert made_otherwise(runs[2:]) == made_otherwise([]) == ""
    assert "2 of 3" in made_otherwise(runs)
    assert "1 of unknown, 1 of abc" in made_otherwise(runs)


@pytest.fixture
def study(tmp_path):
    plan = Plan(
        data="npz:none.npz",
        cells=[CELL],
        tune_at=CELL.towers,
        search=Search(3, rounds=0, seeds=1),
        least=2,
        most=4,
        half_width=0.001,
        payloads=["fp8"],
        options={"embedding_dim": 8},
        tower_options={"compression": 3.0},
    )
    return Study(plan, Records(tmp_path / "runs.jsonl"))


def record(spec, auc, valid_auc=0.7):
    curve = [{"valid": valid_auc, "test": auc, "seconds": 1.0}]
    figures = {"auc": auc, "valid_auc": valid_auc, "best_auc": None, "best_epoch": 1, "compression": 2.0}
    return {"spec": spec, "code": code(), **figures, "curve": curve, "payloads": dict.fromkeys(spec["payloads"], auc)}


def tune(study):
    """Finish all trials: the second is the best by validation, the last by test; the third has diverged."""
    for i, (_, spec) in enumerate(study.next_jobs()):
        result = {"spec": spec, "failed": "NaN"} if i % 3 == 2 else record(spec, 0.9 - i % 3, [0.6, 0.7][i % 3])
        study.records.add(result)


def test_flat_and_towers_get_the_same_trials_and_the_best_by_validation_wins(study):
    jobs = study.next_jobs()
    assert [name for name, _ in jobs] == ["trial of dlrm flat"] * 3 + [f"trial of {CELL}"] * 3
    drawn = draw_trials(3)[1]["dense_lr"]
    for flat, towers in zip(jobs[:3], jobs[3:], strict=True):
        assert flat[1]["options"].get("dense_lr") == towers[1]["options"].get("dense_lr")
        assert flat[1]["partition"] is None
        assert towers[1]["partition"] == ["coherent", 0]
        assert {spec["options"]["embedding_dim"] for _, spec in (flat, towers)} == {8}
        assert towers[1]["options"]["compression"] == 3.0
        TrainConfig(**towers[1]["options"])
    assert {spec["options"]["epochs"] for _, spec in jobs} == {study.plan.epochs}
    assert {spec["options"]["early_stop"] for _, spec in jobs} == {study.plan.patience}
    assert study.tuned(CELL) is None
    tune(study)
    assert study.tuned(CELL)["dense_lr"] == study.tuned(CELL.twin)["dense_lr"] == drawn


def test_every_compression_has_trials_of_its_own():
    plan = Plan("npz:none.npz", grid(["dlrm", "dcn"], [2, 4], [2, 4], ["coherent", "random"], ["fp8"]), tune_at=8)
    flat, towers = plan.sources[:2], plan.sources[2:]
    assert flat == [Cell("dlrm"), Cell("dcn")]
    assert towers == [Cell(model, 8, cr, "coherent") for cr in (2, 4) for model in ("dlrm", "dcn")]
    assert plan.source(Cell("dcn", 2, 4, "random", "fp8")) == Cell("dcn", 8, 4, "coherent")
    assert plan.source(Cell("dcn")) == Cell("dcn")


def test_finalists_run_with_other_seeds_and_a_search_goes_on_where_it_was(study, tmp_path):
    search = Search(trials=3, near=2, rounds=1, finalists=2, seeds=2)
    study = dataclasses.replace(study, plan=dataclasses.replace(study.plan, search=search))
    for _, spec in study.next_jobs():
        study.records.add(record(spec, 0.9, spec["options"].get("dense_lr", 1e-3)))
    best = sorted([trial.get("dense_lr", 1e-3) for trial in draw_trials(3)])[1:]
    again = study.next_jobs()
    assert sorted(spec["options"].get("dense_lr", 1e-3) for _, spec in again) == sorted(2 * best)
    assert {spec["options"]["seed"] for _, spec in again} == {TUNING_SEED + 1}
    for _, spec in again[:3]:
        study.records.add(record(spec, 0.9, 0.1))
    restarted = Study(study.plan, Records(tmp_path / "runs.jsonl"))
    flat_is_ahead = [job for job in restarted.next_jobs() if job != again[3]]
    assert again[3] in restarted.next_jobs()
    assert [name for name, _ in flat_is_ahead] == ["trial of dlrm flat"] * 2
    assert {spec["options"]["seed"] for _, spec in flat_is_ahead} == {TUNING_SEED}
    assert key_of(again[3][1]) not in {key_of(spec) for _, spec in restarted.next_jobs([key_of(again[3][1])])}


def test_seeds_are_added_in_pairs_while_the_difference_is_uncertain(study):
    tune(study)
    done = []
    gaps = [0.0, 0.01, 0.005, 0.005]
    while jobs := study.next_jobs():
        done.append([name for name, _ in jobs])
        for (_, spec), auc in zip(jobs, [0.8, 0.8 + gaps[len(done) - 1]], strict=True):
            study.records.add(record(spec, auc))
    assert done == [[f"dlrm flat seed {seed}", f"{CELL} seed {seed}"] for seed in range(4)]
    assert study.difference(CELL).mean == pytest.approx(0.005)
    assert len(tables(study)) == 10


def test_the_choice_of_towers_is_compared_seed_by_seed(study):
    cells = [CELL, dataclasses.replace(CELL, partition="strided")]
    study = dataclasses.replace(study, plan=dataclasses.replace(study.plan, cells=cells))
    tune(study)
    for (_, spec), auc in zip(study.next_jobs(), [0.7, 0.8, 0.79], strict=True):
        study.records.add(record(spec, auc))
    shown = [list(column.cells) for column in tables(study)[9].columns]
    assert shown == [[str(cells[1])], ["1"], ["+0.0100"]]


def test_seeds_end_when_the_difference_is_known(study):
    tune(study)
    while jobs := study.next_jobs():
        for _, spec in jobs:
            study.records.add(record(spec, 0.8))
    assert study.difference(CELL) == Estimate(0.0, 0.0, 2)
    assert len(study.runs(CELL)) == 2


def test_no_job_runs_twice_and_what_is_left_counts_down(study, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.quality.study.ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    monkeypatch.setattr("bench.quality.study.run", lambda spec, folder: record(spec, 0.8))
    told = []
    conduct(study, tmp_path, 3, lambda name, _, left: told.append((name, left)))
    trials = [left for name, left in told if name.startswith("trial")]
    assert trials == [5, 4, 3, 2, 1, 0]
    names = [name for name, left in told if "seed" in name]
    assert len(names) == len(set(names)) == len(study.records) - 6
    assert study.next_jobs() == []


def test_a_run_that_failed_is_not_run_again(study):
    tune(study)
    flat, towers = (spec for _, spec in study.next_jobs())
    study.records.add(record(flat, 0.8))
    study.records.add({"spec": towers, "failed": "NaN"})
    assert [name for name, _ in study.next_jobs()] == ["dlrm flat seed 1", f"{CELL} seed 1"]
    assert study.difference(CELL).count == 0


def test_another_payload_trains_nothing_again(study):
    tune(study)
    while jobs := study.next_jobs():
        for _, spec in jobs:
            study.records.add(record(spec, 0.8))
    wider = dataclasses.replace(study, plan=dataclasses.replace(study.plan, payloads=["fp8", "int8"]))
    assert wider.next_jobs() == []
    shown = [list(column.cells) for column in tables(wider)[7].columns]
    assert shown[1:3] == [["2", "0 of 2"], ["+0.00000 ± 0.00000", "-"]]


def test_the_epoch_that_reaches_an_auc():
    curve = [{"valid": value} for value in (0.6, 0.7, 0.65)]
    assert first_epoch_at(curve, 0.65) == 2
    assert first_epoch_at(curve, 0.71) is None


def test_a_tiny_grid_from_end_to_end_that_is_killed_on_the_way(tmp_path, capsys):
    words = (
        "--jobs 1 --models dlrm --towers 2 --compressions 2 --partitions random --trials 1 --rounds 0 --trial-seeds 1"
    )
    words += " --epochs 2 --data synthetic:512 --trial-epochs 1 --least 2 --most 2 --tune-at 2 --train-payloads fp8"
    words += " --average-weights 0.9 --option batch_size=128 --tower-option tower_module=dcn"
    command = [*words.split(), "--out", str(tmp_path)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "dlrm T=2 CR=2 random fp8 seed 1" in shown
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 1 + 2 * 3
    scored = [run for run in map(json.loads, lines) if run["payloads"]]
    assert all(set(run["payloads"]) == {"bf16", "fp8"} for run in scored)
    assert any(run["payloads"]["fp8"] != run["auc"] for run in scored)  # so few rows need not change their order
    run = scored[0]
    assert len(run["curve"]) == 2
    assert run["spec"]["options"]["tower_module"] == "dcn"
    assert run["spec"]["options"]["average_weights"] == 0.9
    assert "to the best" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "differences.png").stat().st_size > 1000

    (tmp_path / "runs.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    assert main(command) == 0
    assert capsys.readouterr().out.count(" seed ") == 1
    again = Path(tmp_path / "runs.jsonl").read_text().splitlines()
    assert json.loads(again[-1])["auc"] == json.loads(lines[-1])["auc"]
    (tmp_path / "runs.jsonl").write_text("\n".join(again).replace(code()["sources"], "others") + "\n")
    assert main([*command, "--report"]) == 0
    shown = capsys.readouterr().out
    assert " seed " not in shown
    assert "8 of 8 finished runs were made by other sources" in shown


def test_a_bench_that_is_terminated_ends_what_it_has_started(tmp_path):
    command = f"-m bench.quality --jobs 2 --models dlrm --data synthetic:20000 --out {tmp_path}".split()
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) as bench:
        children = Path(f"/proc/{bench.pid}/task/{bench.pid}/children")
        deadline = time.monotonic() + 60
        while len(started := children.read_text().split()) < 3 and time.monotonic() < deadline:  # and their tracker
            time.sleep(0.1)  # nobody says when a process has started
        bench.terminate()
        _, said = bench.communicate(timeout=60)
    assert bench.returncode == 130
    assert "interrupted; the same command goes on" in said
    assert len(started) >= 3
    while left := [pid for pid in started if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline + 60, left
        time.sleep(0.1)  # their tracker ends by itself, once it sees that they have


def test_a_run_is_scored_as_it_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)  # what a process of its own may do
    options = {"data": "synthetic:512", "towers": 2, "tower_module": "dlrm", "epochs": 1, "early_stop": 1, "amp": True}
    found = run({"options": options, "partition": ["random", 0], "payloads": ["fp32"]}, tmp_path)
    assert found["auc"] == found["curve"][0]["test"] == found["payloads"]["fp32"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--trials 0", "0 is below 1"),
        ("--rounds -1", "-1 is below 0"),
        ("--tune-at 0", "0 is below 1"),
        ("--partitions", "at least one argument"),
        ("--partitions alike", "'alike'"),
        ("--payloads fp7", "'fp7'"),
        ("--option nonsense=1", "--nonsense=1"),
        ("--option members=two", "'two'"),
        ("--option amp=maybe", "amp is true or false, not 'maybe'"),
        ("--option seed=3", "seed is what the bench itself chooses"),
        ("--option average-weights=0.9", "average-weights is an option of the bench: --average-weights"),
        ("--average-weights 1", "--average-weights 1 is not between 0 and 1"),
        ("--models dlrm tlrm", "'tlrm'"),
        ("--compressions 2 0", "--compression 0"),
        ("--tower-option tower-payload=int7", "'int7'"),
        ("--option steps=100", "--epochs and --steps exclude each other"),
    ],
)
def test_what_cannot_be_trained_with_is_said_before_anything_is(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bench.quality.__main__.conduct", None)
    with contextlib.suppress(SystemExit):
        assert main([*words.split(), "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_options_are_read_as_train_reads_them():
    given = _parser().parse_args(["--option", "members=2", "--option", "amp=true", "--option", "table-lr=1e-2"])
    assert dict(given.option) == {"members": 2, "amp": True, "table_lr": 0.01}


@pytest.mark.parametrize(
    ("words", "decay"), [("", 0.995), ("--average-weights 0.9", 0.9), ("--average-weights 0", None)]
)
def test_averages_are_what_is_scored_unless_that_is_unwanted(words, decay):
    plan = _plan(_parser().parse_args(words.split()))
    assert all(
        plan.run(cell, {}, 0)["options"].get("average_weights") == decay for cell in (plan.cells[0], *plan.twins)
    )


def test_a_model_whose_trials_all_failed_is_shown(study):
    for _, spec in study.next_jobs():
        study.records.add({"spec": spec, "failed": "NaN"})
    chosen = tables(study)[1]
    assert [list(column.cells) for column in chosen.columns][1:] == [["-", "-"], ["failed", "failed"], ["-", "-"]]


def test_bad_input_is_a_sentence(tmp_path, capsys):
    assert main(["--data", "npz:/no/such.npz", "--out", str(tmp_path), "--jobs", "1"]) == 2
    assert "/no/such.npz" in capsys.readouterr().err


@pytest.mark.parametrize(("missing", "said"), [("valid", "validation rows"), ("test", "no test rows")])
def test_rows_that_are_missing_are_missed_before_anything_is_trained(missing, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bench.quality.__main__.conduct", None)
    arrays = npz_arrays()
    arrays["split"] = np.where(arrays["split"] == SPLITS.index(missing), 0, arrays["split"]).astype(np.uint8)
    data = save_npz(tmp_path / "rows.npz", arrays)
    assert main(["--data", f"npz:{data}", "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_rows_of_one_class_are_a_run_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    arrays = npz_arrays()
    arrays["label"][arrays["split"] == SPLITS.index("test")] = 0
    options = {"data": f"npz:{save_npz(tmp_path / 'rows.npz', arrays)}", "exchange": "flat", "batch_size": 16}
    found = run({"options": options, "partition": None, "payloads": []}, tmp_path)
    assert "one class" in found["failed"]


def test_a_report_says_what_it_does_not_show(tmp_path, capsys):
    folder = tmp_path / "runs"
    assert main(["--out", str(folder), "--report"]) == 2
    assert "no finished runs" in capsys.readouterr().err and not folder.exists()
    folder.mkdir()
    Records(folder / "runs.jsonl").add({"spec": {"options": {"seed": 0}}, "code": code()})
    assert main(["--out", str(folder), "--report"]) == 0
    assert "not shown: runs of other options" in capsys.readouterr().err
