"""Build script: finds torch without importing it, then lets CMake and Ninja compile csrc.

The odd choice here is that torch is no build requirement. pip builds in an isolated environment, and a torch listed in
``build-system.requires`` would be downloaded there, gigabytes of it, only to build against a different torch than the
one that runs. The torch to build against is that of the environment pip was called from, so this script looks there.

Environment variables:

``DMT_TORCH_DIR``  folder of the torch package to build against (the one that holds ``version.py``)
``DMT_CUDA``       ``auto`` (default: when nvcc and a CUDA torch of its major version are there), ``on`` or ``off``
``DMT_COMM``       the communication engine: ``auto`` (default: when torch has ``torch.distributed``), ``on`` or ``off``
``DMT_SANITIZE``   sanitizers to compile with, e.g. ``address``
``DMT_BEST_ISA``   the last instruction set to compile kernels for: ``baseline``, ``avx2``, ``avx512``
``DMT_TESTS``      a folder: the C++ tests of the kernels are built, too, and put there
``CXX``, ``NVCC``  compilers; ``MAX_JOBS`` limits parallel compilations
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
PACKAGE = "dmt_kernels"
MIN_PYTHON = (3, 10)
MIN_TORCH = (2, 10)  # the stable ABI that csrc is compiled for


def fail(sentence: str) -> NoReturn:
    """End the build with one sentence and no traceback."""
    raise SystemExit(f"{PACKAGE}: {sentence}")


@dataclass(frozen=True)
class Torch:
    """The torch to build against, as read from its files."""

    path: Path
    version: str
    cuda: str | None

    @property
    def release(self) -> tuple[int, int]:
        major, minor = re.match(r"(\d+)\.(\d+)", self.version).groups()
        return int(major), int(minor)


def site_folders() -> list[Path]:
    """Return the folders where the calling environment keeps packages, also when the build is isolated from them.

    pip's isolated build runs the same interpreter with another ``sys.path``; ``sysconfig`` still knows the folders.
    Other front ends (``build``, ``uv``) make a virtualenv of their own; the active one is then in ``VIRTUAL_ENV``.
    """
    folders = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    config = Path(sys.prefix, "pyvenv.cfg")
    if config.is_file() and re.search(r"include-system-site-packages\s*=\s*true", config.read_text()):
        folders += site.getsitepackages([sys.base_prefix])
    if active := os.environ.get("VIRTUAL_ENV"):
        folders.append(sysconfig.get_path("platlib", vars={"base": active, "platbase": active}))
    return [Path(folder) for folder in dict.fromkeys(folders)]


def find_torch() -> Torch:
    """Find the torch package and read its version, without importing it."""
    if chosen := os.environ.get("DMT_TORCH_DIR"):
        if not Path(chosen, "version.py").is_file():
            fail(f"DMT_TORCH_DIR={chosen} is not the folder of a torch package (it has no version.py).")
        return read_torch(Path(chosen))
    spec = importlib.util.find_spec("torch")
    candidates = [Path(folder) for folder in spec.submodule_search_locations or []] if spec else []
    candidates += [folder / "torch" for folder in site_folders()]
    for path in candidates:
        if (path / "version.py").is_file():
            return read_torch(path)
    fail(
        f"no torch found for {sys.executable}; install torch {dotted(MIN_TORCH)} or later first "
        "(e.g. pip install torch), or set DMT_TORCH_DIR to the folder of a torch package."
    )


def read_torch(path: Path) -> Torch:
    """Read the versions from the text of ``torch/version.py`` and refuse a torch that is too old."""
    text = (path / "version.py").read_text()
    version = re.search(r"^__version__\s*(?::[^=]*)?=\s*['\"](\d+\.\d+[^'\"]*)['\"]", text, re.MULTILINE)
    cuda = re.search(r"^cuda\s*(?::[^=]*)?=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    if version is None:
        fail(f"cannot read the version of the torch in {path}.")
    torch = Torch(path.resolve(), version[1], cuda[1] if cuda else None)
    if torch.release < MIN_TORCH:
        fail(f"torch {torch.version} in {torch.path} is too old; {dotted(MIN_TORCH)} or later is needed.")
    return torch


def dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def check_python() -> None:
    if sys.version_info < MIN_PYTHON:
        fail(f"Python {dotted(sys.version_info[:2])} is too old; {dotted(MIN_PYTHON)} or later is needed.")


def find_compiler() -> str:
    """Return the C++ compiler that CMake will take: ``CXX``, else the first of the usual names."""
    wanted = os.environ.get("CXX")
    names = [shlex.split(wanted)[0]] if wanted else ["c++", "CC", "g++", "clang++"]
    for name in names:
        if found := shutil.which(name):
            return wanted or found
    if wanted:
        fail(f"the C++ compiler CXX={wanted} does not exist.")
    fail("no C++ compiler found; install g++ 11 or clang 14 or later (e.g. apt install g++), or set CXX.")


def is_stale(cache: Path, compiler: str) -> bool:
    """Whether CMake would refuse what is built there, for the tree was moved, or keep to another compiler."""
    if not cache.is_file():
        return False
    known = dict(re.findall(r"^(\w+):\w+=(.*)$", cache.read_text(), re.MULTILINE))
    wanted = shutil.which(shlex.split(compiler)[0])
    kept = known.get("CMAKE_CXX_COMPILER")
    is_other = bool(wanted and kept) and _program(wanted) != _program(kept)
    return known.get("CMAKE_HOME_DIRECTORY") != str(ROOT) or is_other


def _program(path: str) -> Path:
    """What runs; a link to ccache is known by its own name, by which that chooses."""
    target = Path(path).resolve()
    return Path(path) if target.name == "ccache" else target


def find_nvcc() -> tuple[str, str] | None:
    """Return path and version ("13.0") of nvcc, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    names = [os.environ.get("NVCC"), "nvcc", *(f"{home}/bin/nvcc" for home in homes if home)]
    for name in names:
        if name and (path := shutil.which(name)):
            answer = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            if release := re.search(r"release (\d+\.\d+)", answer):
                return path, release[1]
    return None


def choose_cuda(wish: str, torch: Torch, nvcc: tuple[str, str] | None) -> tuple[bool, str]:
    """Return whether to build for CUDA, and why.

    ``auto`` builds when nvcc and a CUDA torch of nvcc's major version are there; ``on`` fails when one is missing.
    """
    if wish not in ("auto", "on", "off"):
        fail(f"DMT_CUDA={wish} is unknown; it is auto, on or off.")
    if wish == "off":
        return False, "DMT_CUDA=off"
    if nvcc is None:
        reason = "nvcc was not found"
    elif torch.cuda is None:
        reason = f"torch {torch.version} is not a CUDA build"
    elif nvcc[1].split(".")[0] != torch.cuda.split(".")[0]:
        reason = f"nvcc is {nvcc[1]} but torch is built for CUDA {torch.cuda}"
    else:
        return True, f"nvcc {nvcc[1]}, torch for CUDA {torch.cuda}"
    if wish == "on":
        fail(f"DMT_CUDA=on, but {reason}.")
    return False, reason


def choose_comm(wish: str, torch: Torch) -> tuple[bool, str]:
    """Return whether to build the communication engine, and why not."""
    if wish not in ("auto", "on", "off"):
        fail(f"DMT_COMM={wish} is unknown; it is auto, on or off.")
    if wish == "off":
        return False, "DMT_COMM=off"
    if (torch.path / "include/torch/csrc/distributed/c10d/ProcessGroup.hpp").is_file():
        return True, "on"
    reason = f"torch {torch.version} has no headers of torch.distributed"
    if wish == "on":
        fail(f"DMT_COMM=on, but {reason}.")
    return False, reason


def find_tool(name: str) -> str:
    """Return the path of cmake or ninja, that of the PyPI package if there is one.

    A launcher script on the PATH may belong to an isolated environment that is gone by the next build.
    """
    if importlib.util.find_spec(name):
        package = importlib.import_module(name)
        folder = getattr(package, "CMAKE_BIN_DIR", None) or getattr(package, "BIN_DIR", None)
        if folder and (found := shutil.which(name, path=folder)):
            return found
    if found := shutil.which(name):
        return found
    fail(f"{name} not found; pip install cmake ninja pybind11, or build without --no-build-isolation.")


def find_pybind11() -> str:
    if importlib.util.find_spec("pybind11") is None:
        fail("pybind11 not found; pip install cmake ninja pybind11, or build without --no-build-isolation.")
    command = [sys.executable, "-m", "pybind11", "--cmakedir"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class BuildWithCMake(build_ext):
    """Configure, build and install csrc into the package folder (the source tree's own, for an editable install)."""

    def run(self) -> None:
        check_python()
        torch = find_torch()
        compiler = find_compiler()
        nvcc = find_nvcc()
        cuda, reason = choose_cuda(os.environ.get("DMT_CUDA", "auto").lower(), torch, nvcc)
        comm, comm_state = choose_comm(os.environ.get("DMT_COMM", "auto").lower(), torch)
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        print(f"{PACKAGE}: torch {torch.version} in {torch.path}")
        print(f"{PACKAGE}: compiler {compiler}, CUDA {'on' if cuda else 'off'} ({reason})", flush=True)

        # One folder per Python, torch and sanitizers, so that switching does not rebuild everything each time.
        sanitize = os.environ.get("DMT_SANITIZE", "")
        folder = f"sanitize/{sanitize}" if sanitize else "cmake"
        build = ROOT / "build" / f"{folder}-{sys.implementation.cache_tag}-torch-{torch.version}"
        if is_stale(build / "CMakeCache.txt", compiler):
            shutil.rmtree(build)
        settings = {
            "CMAKE_MAKE_PROGRAM": ninja,  # an isolated build would otherwise cache a path that is gone next time
            "pybind11_DIR": find_pybind11(),
            "Python_EXECUTABLE": sys.executable,
            "DMT_TORCH_DIR": str(torch.path),
            "DMT_TORCH_VERSION": torch.version,
            "DMT_VERSION": self.distribution.get_version(),
            "DMT_SANITIZE": sanitize,
            "DMT_BEST_ISA": os.environ.get("DMT_BEST_ISA", ""),
            "DMT_TESTS": os.environ.get("DMT_TESTS", ""),
            "DMT_COMM": "ON" if comm else "OFF",
            "DMT_COMM_STATE": comm_state,
            "DMT_CUDA": "ON" if cuda else "OFF",
            "DMT_CUDA_VERSION": nvcc[1] if cuda else "",
            "CMAKE_INSTALL_MESSAGE": "LAZY",  # name only the files that changed
        }
        if cuda:
            os.environ["CUDACXX"] = nvcc[0]  # where CMake looks when it comes to enable CUDA
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        self.call(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *(f"-D{k}={v}" for k, v in settings.items()))
        self.call(cmake, "--build", str(build), "-j", jobs)
        for stale in [] if comm else self.package_folder().glob("_comm*.so"):
            stale.unlink()  # of an earlier build, and perhaps of another torch
        if not cuda:
            (self.package_folder() / "_lib/libdmt_cuda.so").unlink(missing_ok=True)
        self.call(cmake, "--install", str(build), "--prefix", str(self.package_folder()))

    def call(self, *command: str) -> None:
        if subprocess.run(command).returncode:
            fail("the C++ build failed; the messages of CMake and the compiler are above.")

    def package_folder(self) -> Path:
        return (ROOT if self.inplace else Path(self.build_lib).resolve()) / PACKAGE

    def get_outputs(self) -> list[str]:
        folder = self.package_folder()
        return [str(path) for path in [*folder.glob("_*.so"), *folder.glob("_lib/*.so")]]

    def get_output_mapping(self) -> dict[str, str]:
        return {}  # an editable install has the files in their place already


class CheckedDistInfo(dist_info):
    """Metadata, refused when the build could not succeed: pip asks for it before it downloads the dependencies."""

    def run(self) -> None:
        check_python()
        find_torch()
        super().run()


if __name__ == "__main__":
    setup(
        ext_modules=[Extension(f"{PACKAGE}._C", sources=[])],
        cmdclass={"build_ext": BuildWithCMake, "dist_info": CheckedDistInfo},
    )
