"""The folder of a run."""

import json

import pytest

from dmt_kernels.spec import InputError
from dmt_kernels.train.output import RunFolder


def test_only_files_of_a_run_are_cleared(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    folder.model.mkdir()
    (folder.model / "part").write_text("old")
    folder.append_metrics({"step": 1})
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        folder.check_writable(overwrite=False)
    folder.check_writable(overwrite=True)
    folder.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    folder.check_writable(overwrite=False)


def test_metrics_are_lines_and_numbers_that_are_none_become_null(tmp_path):
    folder = RunFolder(tmp_path / "new")
    folder.clear()
    folder.append_metrics({"step": 1, "loss": 0.5})
    folder.append_metrics({"step": 2, "loss": float("nan")})
    assert folder.read_metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    folder.write_summary({"auc": float("inf"), "steps": 2})
    assert json.loads(folder.summary.read_text()) == {"auc": None, "steps": 2}
