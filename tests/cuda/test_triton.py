"""Triton twins agree with the CPU's kernels, interpreted in a process of its own, and compile without a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton; pip install triton")


def run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "cuda" / script], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_twins_agree_with_the_cpu():
    assert "all agree" in run("interpret_triton.py", TRITON_INTERPRET="1")


def test_twins_compile_without_a_gpu(tmp_path):
    assert run("compile_triton.py", TRITON_CACHE_DIR=str(tmp_path)).count("cubin") == 4
