"""Kernels are compiled once per instruction set: the copies do not mix, and each is right."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmt_kernels import _C

ROOT = Path(__file__).parents[2]
ISAS = _C.build_info()["instruction_sets"].split(",")
OBJECTS = sorted(
    path for path in ROOT.glob("build/cmake-*/CMakeFiles/dmt_cpu_*.dir/**/*.o") if "dmt_cpu.dir" not in path.parts
)

# Runs in a fresh process, because the choice is made once. Prints the choice.
CHECK = """
import torch
from dmt_kernels import _C
from dmt_kernels.ops import embedding_bag, tower_pool, wire_decode, wire_encode
from dmt_kernels.ops.reference.embedding_bag import embedding_bag as bag_oracle
from dmt_kernels.ops.reference.tower_pool import tower_pool as tower_oracle
from dmt_kernels.ops.reference import wire_codec
from dmt_kernels.spec import WireFormat
from tests.ops.bags import DTYPES, random_bags
from tests.tolerances import TOLERANCES

for dtype in DTYPES:
    batch = random_bags(
        dims=(33, 16, 5), rows=(9, 4, 8), samples=37, weighted=True, pooling="mean", dtype=dtype, missing=True
    )
    weight = torch.randn(21, batch.width, dtype=torch.float64).to(dtype) / 8
    tolerance = {"rtol": 2 * TOLERANCES[dtype]["rtol"], "atol": 2e-5}
    for op, oracle, extra in ((embedding_bag, bag_oracle, ()), (tower_pool, tower_oracle, (weight,))):
        actual, expected = op(*batch.args, *extra, **batch.options), oracle(*batch.args, *extra, **batch.options)
        torch.testing.assert_close(actual, expected, **tolerance)
    if dtype != torch.float64:
        rounded = {**batch.options, "product_dtype": torch.bfloat16}
        actual, expected = (op(*batch.args, weight, **rounded) for op in (tower_pool, tower_oracle))
        torch.testing.assert_close(actual, expected, rtol=2**-7, atol=2**-7)
    # Messages are read by ranks with other instruction sets: these are bits.
    rows = torch.randn(40, 37, dtype=torch.float64).mul(torch.logspace(-46, 38, 40, dtype=torch.float64)[:, None])
    for wire_format in WireFormat:
        for seed in (None, 3):
            message = wire_encode(rows.to(dtype), wire_format, seed=seed)
            assert torch.equal(message, wire_codec.wire_encode(rows.to(dtype), wire_format, seed=seed))
            decoded, expected = (f(message, 37, wire_format, dtype) for f in (wire_decode, wire_codec.wire_decode))
            torch.testing.assert_close(decoded, expected, rtol=0, atol=0, equal_nan=True)
print(_C.isa())
"""


@pytest.mark.skipif(not OBJECTS or not shutil.which("nm"), reason="no objects of a build in this checkout, or no nm")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: "-".join(path.parts[-5:][::4]))
def test_objects_emit_no_weak_symbols(path):
    """The linker keeps one copy of a weak symbol: it could be the one that an older CPU cannot run."""
    symbols = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    weak = [line for line in symbols.splitlines() if line.split()[-2] in "wWvVu"]
    assert symbols and weak == []


@pytest.mark.parametrize("isa", ISAS[: ISAS.index(_C.isa()) + 1])
def test_forced_isa_is_used_and_right(isa):
    environment = {**os.environ, "DMT_CPU_ISA": isa, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [isa]


@pytest.mark.skipif("DMT_CPU_ISA" in os.environ, reason="this process did not choose freely")
def test_unknown_isa_changes_nothing():
    command = [sys.executable, "-c", "import torch; from dmt_kernels import _C; print(_C.isa())"]
    environment = {**os.environ, "DMT_CPU_ISA": "sse9", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [_C.isa()]
    assert "DMT_CPU_ISA=sse9 is none of the instruction sets that this CPU runs" in run.stderr
