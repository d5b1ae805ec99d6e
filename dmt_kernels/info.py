"""What is installed, built and in use: the text of ``python -m dmt_kernels info``.

Every line is something a bug report needs. Nothing here fails because a part is missing: the line then says that it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

Section = dict[str, str]


def collect() -> dict[str, Section]:
    """Collect the facts, by section.

    Returns
    -------
    dict of str to dict of str to str
        Sections ``package``, ``build``, ``cpu``, ``gpu``, ``communication`` and ``python``; every value is a text.
    """
    return {
        "package": _package(),
        "build": _build(),
        "cpu": _cpu(),
        "gpu": _gpu(),
        "communication": _communication(),
        "python": _python(),
    }


def report() -> str:
    """Return the facts of :func:`collect` as a text of one line each."""
    sections = collect()
    width = max(len(key) for section in sections.values() for key in section)
    lines = []
    for title, section in sections.items():
        lines.append(title)
        lines += [f"  {key:<{width}}  {value}" for key, value in section.items()]
    return "\n".join(lines)


def _extension() -> tuple[ModuleType | None, str]:
    """Return the compiled module, or None and why there is none."""
    if importlib.util.find_spec("dmt_kernels._C") is None:
        return None, "not built; run `pip install .`, or `make build` in a checkout"
    try:
        importlib.import_module("torch")  # its libraries must be loaded before ours that need them
        return importlib.import_module("dmt_kernels._C"), "yes"
    except ImportError as error:
        return None, f"built, but cannot be loaded: {error}"


def _package() -> Section:
    return {"dmt_kernels": _installed("dmt_kernels"), "folder": os.path.dirname(os.path.abspath(__file__))}


def _build() -> Section:
    extension, state = _extension()
    options = extension.build_info() if extension else {}
    return {"extension": state} | {key.replace("_", " "): str(value) or "none" for key, value in options.items()}


def _cpu() -> Section:
    extension, _ = _extension()
    section = {"machine": platform.machine()}
    if extension:
        section["instruction set in use"] = extension.isa()
    if forced := os.environ.get("DMT_CPU_ISA"):
        section["DMT_CPU_ISA"] = forced
    if torch := _torch():
        section["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} logical cores"
    return section


def _gpu() -> Section:
    torch = _torch()
    if torch is None:
        return {"cuda": "unknown without torch"}
    section = {"triton": _installed("triton"), "cuda": "this torch is a CPU build"}
    if torch.version.cuda:
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        section["cuda"] = f"{torch.version.cuda} in torch"
        section["devices"] = ", ".join(names) or "none visible"
        section["kernels"] = _cuda_kernels()
    return section


def _cuda_kernels() -> str:
    try:
        from dmt_kernels.ops._library import cuda_kernels
    except ImportError as error:  # NotBuilt is one
        return f"none: {error}"
    return cuda_kernels


def _communication() -> Section:
    torch = _torch()
    if torch is None or not torch.distributed.is_available():
        return {"torch.distributed": "not available"}
    distributed = torch.distributed
    nccl = "not in this torch"
    if distributed.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return {
        "engine": _engine(),
        "gloo": "available" if distributed.is_gloo_available() else "not in this torch",
        "nccl": nccl,
    }


def _engine() -> str:
    try:
        from dmt_kernels.ops.stage import engine_in_use
    except ImportError as error:  # NotBuilt is one
        return f"none: {error}"
    return engine_in_use


def _python() -> Section:
    names = ("torch", "numpy", "scikit-learn", "rich", "matplotlib")
    return {"python": platform.python_version(), "system": platform.platform()} | {n: _installed(n) for n in names}


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _torch() -> ModuleType | None:
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None
