"""What the bench of a GPU makes of a trace and of a run that is cut off; that it runs is for `gpu.sh --cpu`."""

import json
from types import SimpleNamespace

import pytest
import torch

from bench.gpu.__main__ import measure, write
from bench.gpu.cases import Case
from bench.gpu.graph import device_spans, gaps, typical, verdict

GPU = SimpleNamespace(device=torch.device("cuda"), seconds=lambda run: run())  # runs say how long they take


def event(start, duration, category="kernel"):
    return {"ts": start, "dur": duration, "cat": category, "name": "any"}


def test_gaps_between_kernels_that_overlap():
    events = [event(130, 10), event(100, 20), event(105, 3, "gpu_memcpy"), event(0, 500, "cpu_op"), {"name": "thread"}]
    found = {"kernels": 3, "us": 40, "idle us": 10, "largest gap us": 10, "between": "any and any", "memset gap us": 0}
    assert gaps(device_spans({"traceEvents": events})) == found
    found = gaps([(0, 1, "a"), (2, 3, "Memset "), (9, 10, "b")])
    assert (found["largest gap us"], found["between"], found["memset gap us"]) == (1, "a and Memset ", 6)
    assert [verdict(found, memset) for memset in (1.0, 6.0)] == ["unknown", "no"]
    assert verdict(gaps([(0, 1, "a"), (2, 3, "b")]), 1.0) == "yes"
    assert verdict(gaps([(0, 1, "a"), (9, 10, "b")]), 1.0) == "no"
    assert gaps([])["kernels"] == 0


def test_a_replay_of_medians_has_no_gap_of_one_replay():
    replays = [[(0, 2, "a"), (3, 5, "b")], [(10, 12, "a"), (60, 62, "b")], [(90, 93, "a"), (94, 96, "b")]]
    assert typical(replays) == [(0, 2, "a"), (3, 5, "b")]
    with pytest.raises(RuntimeError, match="another order"):
        typical([replays[0], [(0, 2, "b"), (3, 5, "a")]])


def test_results_are_whole_after_every_case(tmp_path):
    record = {"environment": {"gpu": "a|b"}, "ceilings": {"copy": 1.5}, "cases": []}
    write(tmp_path, record)
    record["cases"] = [{"case": "one", "ms": 2.0}, {"case": "two", "failed": "why"}]
    write(tmp_path, record)
    assert json.loads((tmp_path / "gpu.json").read_text()) == record
    assert (tmp_path / "gpu.md").read_text().splitlines()[-2:] == ["| one | 2 |  |", "| two |  | why |"]
    record["cases"].append({"case": "three", "ms": object()})
    with pytest.raises(TypeError):
        write(tmp_path, record)
    assert len(json.loads((tmp_path / "gpu.json").read_text())["cases"]) == 2


def refuse():
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("peers", "of_floor", "met"),
    [
        ({"one": 2.0}, 0.5, "yes"),
        ({"one": 1.0}, 0.5, "no"),
        ({"one": 2.0}, 0.9, "no"),
        ({"one": 2.0, "two": None}, 0.5, "unknown"),
        ({"one": 1.0, "two": None}, 0.5, "no"),
        ({"one": 2.0, "no goal": None}, None, "yes"),
        ({"no goal": 2.0}, None, "unknown"),
    ],
    ids=str,
)
def test_goals_are_met_that_were_measured(peers, of_floor, met):
    makes = {name: refuse if s is None else lambda s=s: lambda: s for name, s in peers.items()}
    goals = {"one": 1.5, "two": 1.5, "takes no part": 1.5}
    case = Case("1", "any", lambda: 1.0, lambda: None, 0.6, of_floor, makes, goals)
    assert measure(GPU, lambda: case)["met"] == met
