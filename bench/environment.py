"""Where and with what a run was made: all that has to be equal for two of them to be compared."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dmt_kernels import info

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "fbgemm_gpu-cpu", "fbgemm_gpu", "torchrec", "numpy")


def collect() -> dict[str, str]:
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "instruction set": info.collect()["cpu"].get("instruction set in use", "extension not built"),
        "threads": str(torch.get_num_threads()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "page": f"{os.sysconf('SC_PAGE_SIZE') // 1024} KiB, transparent huge pages {_huge_pages()}",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    if torch.cuda.is_available():
        facts["gpu"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    if facts["fbgemm_gpu"] == "not installed":
        del facts["fbgemm_gpu"]
    return facts


def revision() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "no git checkout"


def _processor() -> str:
    """The model, family and the widest vector unit: a virtual machine's model name alone says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{facts.get('model name', platform.machine())} family {facts.get('cpu family', '?')}, {' '.join(units)}"


def _huge_pages() -> str:
    try:
        choices = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return choices.partition("[")[2].partition("]")[0] or "unknown"
