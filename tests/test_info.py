"""`python -m dmt_kernels info` reports what is there, and says so when something is not."""

import importlib
import sys

import pytest
import torch

from dmt_kernels import info


def test_report_names_versions_and_what_is_in_use():
    text = info.report()
    for fact in (str(torch.__version__), "gloo", "nccl", "triton", "engine", "cuda", "threads"):
        assert fact in text


def test_instruction_set_is_one_that_was_built():
    built = pytest.importorskip("dmt_kernels._C", reason="the extension is not built")
    facts = info.collect()
    assert facts["cpu"]["instruction set in use"] in built.build_info()["instruction_sets"].split(",")


def test_report_without_the_extension(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dmt_kernels._C" else find(name))
    facts = info.collect()
    assert "not built" in facts["build"]["extension"]
    assert "instruction set in use" not in facts["cpu"]
    assert "not built" in info.report()


def test_report_with_an_extension_that_does_not_load(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "dmt_kernels._C" else find(name))
    monkeypatch.setitem(sys.modules, "dmt_kernels._C", None)  # what the import system raises ImportError for
    assert "cannot be loaded" in info.collect()["build"]["extension"]


def test_report_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    facts = info.collect()
    assert facts["gpu"] == {"cuda": "unknown without torch"}
    assert facts["communication"] == {"torch.distributed": "not available"}
