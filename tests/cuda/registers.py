"""Compiles the CUDA library and compares what its kernels use with csrc/kernels/cuda/registers.txt.

Needs nvcc and any torch, but no GPU: ``python tests/cuda/registers.py BUILD_FOLDER``. Each line of the table is a
kernel, or some of its instances, the most registers that any of these may use on any architecture, and the most bytes
it may spill. Beside the library, bench/gpu/ceilings.cu is compiled.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "csrc" / "kernels" / "cuda" / "registers.txt"

Uses = dict[str, tuple[int, int]]  # registers and bytes spilled, by instance, or by line of the table


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
    # Without the PTX for later GPUs, which has no registers to compare: compile_ptx().
    architectures = os.environ.get("CUDAARCHS", "80-real;90a-real")
    environment = os.environ | {"CUDACXX": nvcc, "PATH": path, "CUDAARCHS": architectures}
    options = [f"-D{name}={value}" for name, value in settings.items()]
    cmake = shutil.which("cmake", path=path) or "cmake"
    subprocess.run([cmake, "-G", "Ninja", "-S", ROOT, "-B", folder, *options], check=True, env=environment)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
    command = [cmake, "--build", folder, "--target", "dmt_cuda", "ceilings", "--clean-first", "-j", jobs]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    Path(folder, "nvcc.log").write_text(done.stdout)
    if done.returncode:
        raise SystemExit(done.stdout)
    compile_ptx(Path(folder), int(jobs))
    return done.stdout


def compile_ptx(folder: Path, jobs: int) -> None:
    """Compile the kernels for compute_90, where code for Hopper alone is announced to the host but is not there.

    It matters that they compile: nothing is optimised, which would take ten times as long.
    """

    def compile_one(command: dict[str, str]) -> str:
        words = [w for w in shlex.split(command["command"]) if not w.startswith(("--generate-code", "-Xptxas"))]
        flags = words[: words.index("-c")] + ["-arch=compute_90", "-Xcicc=-O0"]
        ptx = [*flags, "-ptx", command["file"], "-o", os.devnull]
        done = subprocess.run(ptx, cwd=command["directory"], capture_output=True, text=True)
        return done.stdout + done.stderr if done.returncode else ""

    commands = json.loads((folder / "compile_commands.json").read_text())
    # The adapters' sources have no kernels, and half a minute of torch's headers.
    kernels = [c for c in commands if Path(c["file"]).parent == TABLE.parent]
    with ThreadPoolExecutor(jobs) as pool:
        if failed := "".join(pool.map(compile_one, kernels)):
            raise SystemExit(failed)


def used(log: str) -> Uses:
    """What each instance of a kernel of ours uses, as in ``pool<float,Half>``: the most of all architectures."""
    entry = r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    result: Uses = {}
    found = re.findall(entry, log, re.DOTALL)
    names = subprocess.run(["c++filt"], input="\n".join(f[0] for f in found), capture_output=True, text=True).stdout
    for name, (_, spilled, registers) in zip(names.splitlines(), found, strict=True):
        if "cub::" in name or "dmt::cuda::(anonymous namespace)::" not in name:
            continue
        short = re.sub(r"dmt::cuda::(\(anonymous namespace\)::)?|^void | (?=>)|(?<=,) ", "", name)
        instance = re.match(r"\w+(<.*?>(?=\())?", short)[0]
        result[instance] = most(result.get(instance, (0, 0)), (int(registers), int(spilled)))
    return result


def most(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return max(a[0], b[0]), max(a[1], b[1])


def by_line(kernels: Uses, table: Uses) -> Uses:
    """The most of the instances that each line of the table is the first to name; others by themselves."""
    result: Uses = {}
    for name, uses in kernels.items():
        line = next((line for line in table if fnmatchcase(name, line) or name.startswith(f"{line}<")), name)
        result[line] = most(result.get(line, (0, 0)), uses)
    return result


def complaints(kernels: Uses, table: Uses) -> list[str]:
    """One sentence for every line that the kernels are not as."""
    kernels = by_line(kernels, table)
    result = [f"{name} is in the table, but there is no such kernel" for name in sorted(table.keys() - kernels.keys())]
    for name, (registers, spilled) in sorted(kernels.items()):
        most_registers, most_spilled = table.get(name, (0, 0))
        if registers > most_registers:
            result.append(f"{name} uses {registers} registers, the table says {most_registers}")
        if spilled > most_spilled:
            result.append(f"{name} spills {spilled} bytes, the table says {most_spilled}")
    return result


def read_table() -> Uses:
    lines = [line.split() for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    return {name: (int(registers), int(spilled)) for name, registers, spilled in lines}


def main(folder: str) -> None:
    kernels = used(compile_kernels(folder))
    for name, (registers, spilled) in sorted(by_line(kernels, read_table()).items()):
        print(f"{name:<48} {registers:>4} registers {spilled:>4} bytes spilled")
    if wrong := complaints(kernels, read_table()):
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main(sys.argv[1])
