"""The bench suite itself: names, selection, the gate before the clock, reports from numbers, and the command."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import registry, report
from bench.__main__ import main
from bench.agreement import Disagreement, agree
from bench.bags import SHAPES, BagSpec, draw_ids, make_bags
from bench.comm.verdict import verdict
from bench.memory import OneSlot
from bench.registry import DEFAULT, QUICK, Registry, Setting, Work
from bench.runner import Result, Timing, run_case
from bench.timing import interleave
from dmt_kernels import ops

ROOT = Path(__file__).parents[2]
LOOKUP = "embedding_bag/tiny/uniform/int64/fp32/sum"
UPDATE = "embedding_update_/tiny/uniform/int64/fp32/sum/sgd"


def case(name):
    [found] = [c for c in registry.load("ops") if c.name == name]
    return found


def test_two_cases_of_one_name_are_refused():
    cases = Registry()
    cases.add("a/b", lambda setting: None)
    with pytest.raises(ValueError, match="two cases are named 'a/b'"):
        cases.add("a/b", lambda setting: None)


@pytest.mark.parametrize("suite", registry.SUITES)
def test_every_suite_has_cases_of_every_effort(suite):
    cases = registry.load(suite)
    quick, default, everything = cases.select(effort=QUICK), cases.select(effort=DEFAULT), list(cases)
    assert 0 < len(quick) < len(default) < len(everything)
    assert {c.name for c in quick} <= {c.name for c in default}


def test_a_filter_looks_in_all_cases_and_wants_every_word():
    found = registry.load("ops").select(["tiny", "zipf", "bf16", "mean", "int32"])
    assert [c.name for c in found] == ["embedding_bag/tiny/zipf/int32/bf16/mean"]


@pytest.mark.parametrize("name", [c.name for suite in ["ops"] for c in registry.load(suite) if "tiny" in c.name][::5])
def test_tiny_cases_agree(name):
    work = case(name).build(Setting(peers=("torch",)))
    work.check()
    assert work.work_bytes > 0 or work.work_flops > 0


def test_a_wrong_lookup_is_not_timed(monkeypatch):
    right = ops.embedding_bag

    def wrong(*args, **options):
        result = right(*args, **options).clone()
        result[3, 5] += 0.01
        return result

    monkeypatch.setattr(ops, "embedding_bag", wrong)
    with pytest.raises(Disagreement, match="ours and the oracle"):
        run_case(case(LOOKUP), Setting(), None, 0.01)


def test_a_lookup_that_is_wrong_where_the_oracle_does_not_look_disagrees_with_the_peer(monkeypatch):
    right = ops.embedding_bag

    def wrong(*args, **options):
        result = right(*args, **options).clone()
        result[-1, -1] += 0.01
        return result

    monkeypatch.setattr(ops, "embedding_bag", wrong)
    with pytest.raises(Disagreement, match="ours and torch"):
        run_case(case(LOOKUP), Setting(peers=("torch",)), None, 0.01)


def test_a_wrong_update_is_not_timed(monkeypatch):
    right = ops.embedding_update_
    monkeypatch.setattr(ops, "embedding_update_", lambda *args, **options: right(*args, **options | {"lr": 0.011}))
    with pytest.raises(Disagreement, match="ours and the oracle, table 0"):
        run_case(case(UPDATE), Setting(), None, 0.01)


def test_the_command_shows_the_disagreement_alone_and_fails(monkeypatch, capsys, tmp_path):
    right = ops.embedding_bag
    monkeypatch.setattr(ops, "embedding_bag", lambda *args, **options: right(*args, **options) + 1)
    code = main(["ops", "--quick", "--filter", LOOKUP, "--peer", "", "--json", str(tmp_path / "out.json")])
    lines = [line for line in capsys.readouterr().out.splitlines() if LOOKUP in line]
    assert code == 1
    assert len(lines) == 1 and "DISAGREES, not timed" in lines[0]
    assert json.loads((tmp_path / "out.json").read_text())["suites"]["ops"]["results"] == []


def test_agree_refuses_nan_and_asks_for_bits():
    with pytest.raises(Disagreement):
        agree("x", torch.tensor([float("nan")]), torch.tensor([1.0]))
    with pytest.raises(Disagreement, match="not the same bits"):
        agree("x", torch.tensor([1.0 + 2**-23]), torch.tensor([1.0]), exact=True)
    agree("x", torch.tensor([1.0 + 2**-23]), torch.tensor([1.0]))


def test_contenders_take_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    samples = interleave(runs, 0.0)
    assert len(samples["a"]) == len(samples["b"]) >= 5
    turns = "".join(calls)
    rounds = turns[turns.index("b") :]
    assert rounds.count("ab") >= 5


def test_the_head_of_the_bags_is_the_first_samples_of_every_feature():
    bags = make_bags(BagSpec(SHAPES["tiny"], pooling="weighted"))
    head = bags.head(3)
    whole = ops.embedding_bag(bags.tables, bags.ids, bags.offsets, **bags.options)
    first = ops.embedding_bag(head.tables, head.ids, head.offsets, **head.options)
    assert torch.equal(first, whole[:3])


def test_places_of_rows_are_where_the_rows_lie():
    bags = make_bags(BagSpec(SHAPES["tiny"]))
    starts, sizes = bags.row_places()
    tables, memory, feature = bags.tables, bags.memory.view(torch.uint8), bags.feature_of_ids()
    for i in range(0, len(bags.ids), 17):
        row = tables[feature[i]][bags.ids[i]]
        assert torch.equal(memory[starts[i] : starts[i] + sizes[i]].view(torch.float32), row)


def test_zipf_ids_have_popular_rows_in_no_order():
    ids = draw_ids("zipf", 20_000, 1000, torch.Generator().manual_seed(0))
    counts = ids.bincount(minlength=1000)
    popular = counts.argsort(descending=True)[:10]
    assert counts[popular].sum() > 0.3 * len(ids)
    assert not torch.equal(popular, torch.arange(10))


def test_one_slot_lets_go_before_it_makes():
    slot, alive = OneSlot(), []

    class Big:
        def __init__(self):
            assert not alive
            alive.append(1)

        def __del__(self):
            alive.pop()

    slot.get("a", Big)
    slot.get("a", Big)
    slot.get("b", Big)
    assert len(alive) == 1


def results():
    timings = {"ours": Timing(0.9, 1.0, 1.2, 20), "torch": Timing(2.0, 2.5, 3.0, 20)}
    return [Result("op/one", timings, {"rows": 0.5, "result": 0.3}, work_bytes=2e6)]


def test_a_report_is_made_from_recorded_numbers(capsys):
    recorded = json.loads(json.dumps([result.to_json() for result in results()]))
    again = [Result.from_json(record) for record in recorded]
    assert again == results()
    report.show(report.comparison(again, ["fbgemm", "torch"]))
    heading, _, row = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = dict(zip([c.strip() for c in heading.split("|")], [c.strip() for c in row.split("|")], strict=True))
    assert cells["case"] == "op/one"
    assert cells["ours, ms"] == "0.900 1.00 1.20"
    assert (cells["GB/s"], cells["floor"], cells["of floor"]) == ("2.0", "0.800", "80 %")
    assert cells["fbgemm, ms"] == ""
    assert (cells["torch, ms"], cells["x"]) == ("2.00 2.50 3.00", "2.50")


def test_the_verdict_names_the_gain():
    timings = {"ours": Timing(1, 1, 1, 9), "flat": Timing(2, 2, 2, 9)}
    link = Result("link/peer/1MiB", {"ours": Timing(1, 1, 1, 9)}, work_bytes=1e6)
    line = verdict([link, Result("two_stage/1MiB/linear4x", timings)], {"ranks": "2 towers"})
    assert "1.00 GB/s per rank between peers" in line
    assert "at 1MiB per rank linear4x 2.00x" in line


def test_the_command_runs_a_tiny_case(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "bench", "ops", "--quick", "--filter", LOOKUP, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    [result] = record["suites"]["ops"]["results"]
    assert result["case"] == LOOKUP and result["timings"]["ours"]["p50_ms"] > 0
    assert {"revision", "threads", "instruction set", "torch"} <= record["environment"].keys()
    assert LOOKUP in done.stdout


def test_a_stage_without_a_wire_is_measured_beside_torch(tmp_path):
    out = tmp_path / "out.json"
    words = ["--filter", "overhead/stage", "--peer", "torch", "--json", str(out)]
    done = subprocess.run([sys.executable, "-m", "bench", "ops", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    contenders = {
        case["case"]: set(case["timings"]) for case in json.loads(out.read_text())["suites"]["ops"]["results"]
    }
    both = {"ours", "torch"}
    assert contenders == {f"overhead/stage/{way}": both for way in ("in_place", "packed")} | {
        "overhead/stage/int8": {"ours"}
    }


@pytest.mark.distributed
def test_the_exchange_is_measured_on_ranks_of_its_own(tmp_path):
    out = tmp_path / "out.json"
    words = "two_stage/64KiB"
    command = [sys.executable, "-m", "bench", "comm", "--quick", "--filter", words, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "verdict: 2 towers x 2 members" in done.stdout
    names = [result["case"] for result in json.loads(out.read_text())["suites"]["comm"]["results"]]
    assert names == ["two_stage/64KiB/pass_through", "two_stage/64KiB/linear4x"]


def test_the_package_does_not_import_the_bench():
    for path in (ROOT / "dmt_kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert not [name for name in names if name.split(".")[0] == "bench"], path


def test_a_work_without_a_floor_has_none():
    work = Work(lambda: None, {}, lambda: None)
    result = run_case(registry.Case("x", lambda setting: work), Setting(), None, 0.0)
    assert result.floor_ms == {}
