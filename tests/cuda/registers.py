"""Compiles the CUDA library and compares what its kernels use with csrc/kernels/cuda/registers.txt.

Needs nvcc and any torch, but no GPU: ``python tests/cuda/registers.py BUILD_FOLDER``. Each line of the table is a
kernel, the most registers that any of its instances may use on any architecture, and the most bytes it may spill.
Beside the library, bench/gpu/ceilings.cu is compiled.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "csrc" / "kernels" / "cuda" / "registers.txt"


def compile_kernels(folder: str) -> str:
    """Return what nvcc and ptxas said."""
    torch = Path(importlib.util.find_spec("torch").origin).parent
    pybind11 = Path(importlib.util.find_spec("pybind11").origin).parent
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    settings = {
        "DMT_TORCH_DIR": torch,
        "pybind11_DIR": pybind11 / "share/cmake/pybind11",
        "Python_EXECUTABLE": sys.executable,
        "DMT_CUDA": "ON",
        "DMT_COMM": "OFF",
        "DMT_PTXAS": "-v",
    }
    # The environment's cmake and ninja, and not older ones of the system.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | {"CUDACXX": nvcc, "PATH": path}
    options = [f"-D{name}={value}" for name, value in settings.items()]
    cmake = shutil.which("cmake", path=path) or "cmake"
    subprocess.run([cmake, "-G", "Ninja", "-S", ROOT, "-B", folder, *options], check=True, env=environment)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
    command = [cmake, "--build", folder, "--target", "dmt_cuda", "ceilings", "--clean-first", "-j", jobs]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    Path(folder, "nvcc.log").write_text(done.stdout)
    if done.returncode:
        raise SystemExit(done.stdout)
    return done.stdout


def used(log: str) -> dict[str, tuple[int, int]]:
    """(registers, bytes spilled) of each kernel of ours: the most of all its instances and architectures."""
    entry = r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    result: dict[str, tuple[int, int]] = {}
    found = re.findall(entry, log, re.DOTALL)
    names = subprocess.run(["c++filt"], input="\n".join(f[0] for f in found), capture_output=True, text=True).stdout
    for name, (_, spilled, registers) in zip(names.splitlines(), found, strict=True):
        ours = re.search(r"dmt::cuda::\(anonymous namespace\)::(\w+)[(<]", name)
        if ours and "cub::" not in name:
            most = result.get(ours[1], (0, 0))
            result[ours[1]] = (max(most[0], int(registers)), max(most[1], int(spilled)))
    return result


def complaints(kernels: dict[str, tuple[int, int]], table: dict[str, tuple[int, int]]) -> list[str]:
    """One sentence for every kernel that is not as the table says."""
    result = [f"{name} is in the table, but there is no such kernel" for name in sorted(table.keys() - kernels.keys())]
    for name, (registers, spilled) in sorted(kernels.items()):
        most_registers, most_spilled = table.get(name, (0, 0))
        if registers > most_registers:
            result.append(f"{name} uses {registers} registers, the table says {most_registers}")
        if spilled > most_spilled:
            result.append(f"{name} spills {spilled} bytes, the table says {most_spilled}")
    return result


def read_table() -> dict[str, tuple[int, int]]:
    lines = [line.split() for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    return {name: (int(registers), int(spilled)) for name, registers, spilled in lines}


def main(folder: str) -> None:
    kernels = used(compile_kernels(folder))
    for name, (registers, spilled) in sorted(kernels.items()):
        print(f"{name:<24} {registers:>4} registers {spilled:>4} bytes spilled")
    if wrong := complaints(kernels, read_table()):
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main(sys.argv[1])
