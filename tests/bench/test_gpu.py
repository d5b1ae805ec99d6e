"""What the bench of a GPU makes of a trace and of a run that is cut off; that it runs is for `gpu.sh --cpu`."""

import json

import pytest

from bench.gpu.__main__ import write
from bench.gpu.graph import gaps


def event(start, duration, category="kernel"):
    return {"ts": start, "dur": duration, "cat": category, "name": "any"}


def test_gaps_between_kernels_that_overlap():
    events = [event(130, 10), event(100, 20), event(105, 3, "gpu_memcpy"), event(0, 500, "cpu_op"), {"name": "thread"}]
    assert gaps({"traceEvents": events}) == {"kernels": 3, "us": 40, "largest gap us": 10, "idle us": 10}
    assert gaps({"traceEvents": []})["kernels"] == 0


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
