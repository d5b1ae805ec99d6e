"""Triton twins agree with the CPU's kernels, interpreted in a process of its own, and compile without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.cuda.places import needs_triton

ROOT = Path(__file__).parents[2]


def run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "cuda" / script], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_triton
def test_twins_agree_with_the_cpu():
    assert "all agree" in run("interpret_triton.py", TRITON_INTERPRET="1")


@needs_triton
def test_twins_compile_without_a_gpu(tmp_path):
    assert run("compile_triton.py", TRITON_CACHE_DIR=str(tmp_path)).count("cubin") == 29


def test_every_compiled_op_has_a_twin():
    sources = (ROOT / "csrc" / "ops").glob("*_cuda.cu")
    compiled = {name for source in sources for name in re.findall(r'ops\.impl\("(\w+)"', source.read_text())}
    ops = ROOT / "dmt_kernels" / "ops"
    twins = set(re.findall(r'"(\w+)"', (ops / "_cuda.py").read_text()))
    for path in ops.glob("*.py"):  # compositions of other ops
        twins |= set(re.findall(r'implement_on\("CUDA", "(\w+)"', path.read_text()))
    assert len(compiled) > 10
    assert compiled <= twins
