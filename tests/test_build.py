"""The build: what setup.py chooses, its one-sentence refusals, and what it leaves in the package."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
LIBRARIES = [*ROOT.glob("dmt_kernels/_*.so"), *ROOT.glob("dmt_kernels/_lib/*.so")]


@pytest.fixture
def build(monkeypatch):
    """setup.py as a module, in an environment without settings of the user's."""
    for name in ("DMT_TORCH_DIR", "DMT_CUDA", "DMT_COMM", "CXX", "NVCC"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("dmt_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dmt_setup", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_torch(tmp_path, monkeypatch):
    """Write a torch package that is only its version.py, and point DMT_TORCH_DIR at it."""

    def write(version, cuda=None):
        (tmp_path / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\nhip = None\n")
        monkeypatch.setenv("DMT_TORCH_DIR", str(tmp_path))
        return tmp_path

    return write


def refusal(function, *arguments):
    """The sentence with which a call ends the build."""
    with pytest.raises(SystemExit) as error:
        function(*arguments)
    sentence = str(error.value)
    assert sentence.startswith("dmt_kernels: ") and sentence.endswith(".") and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.11.0a0+ebedce2", "3.0.0"])
def test_torch_is_read_from_its_text(build, fake_torch, version):
    folder = fake_torch(version, cuda="13.0")
    assert build.find_torch() == build.Torch(folder.resolve(), version, "13.0")


def test_torch_without_cuda(build, fake_torch):
    fake_torch("2.10.0", cuda=None)
    assert build.find_torch().cuda is None


@pytest.mark.parametrize("version", ["1.13.1", "2.9.1+cu128"])
def test_torch_too_old(build, fake_torch, version):
    folder = fake_torch(version)
    sentence = refusal(build.find_torch)
    assert version in sentence and str(folder) in sentence and "2.10" in sentence


def test_torch_dir_that_holds_no_torch(build, tmp_path, monkeypatch):
    monkeypatch.setenv("DMT_TORCH_DIR", str(tmp_path))
    assert "DMT_TORCH_DIR" in refusal(build.find_torch)


def test_no_torch(build, monkeypatch):
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(build, "site_folders", list)
    assert "no torch found" in refusal(build.find_torch)


def test_torch_is_found_where_isolation_hides_it(build, monkeypatch):
    """pip's isolated build cannot import the environment's packages; the folders are still known."""
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    found = build.find_torch()
    assert found.path == Path(torch.__file__).parent.resolve()
    assert found.version == str(torch.__version__)
    assert found.cuda == torch.version.cuda


def test_torch_of_the_active_virtualenv(build, tmp_path, monkeypatch):
    """A front end that builds in a virtualenv of its own leaves the active one in VIRTUAL_ENV."""
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    assert build.site_folders()[-1].is_relative_to(tmp_path)


def test_no_compiler(build, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in refusal(build.find_compiler)


def test_compiler_that_does_not_exist(build, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert "CXX=no-such-compiler -m64" in refusal(build.find_compiler)


def test_a_build_folder_of_another_tree_or_compiler_is_stale(build, tmp_path, monkeypatch):
    """CMake refuses the former, and would keep to the latter's."""
    for name in ("first", "second"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "c++").symlink_to("first")
    monkeypatch.setenv("PATH", str(tmp_path))
    cache = tmp_path / "CMakeCache.txt"
    assert not build.is_stale(cache, "c++")  # there is none yet
    cache.write_text(f"CMAKE_CXX_COMPILER:FILEPATH={tmp_path}/c++\nCMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n")
    assert not build.is_stale(cache, "c++") and not build.is_stale(cache, f"{tmp_path}/first -m64")
    assert build.is_stale(cache, "second")
    for name in ("ccache", "g++", "clang++"):  # which looks by what name it was called
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to("ccache") if name != "ccache" else (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / "ccache").chmod(0o755)
    cache.write_text(f"CMAKE_CXX_COMPILER:FILEPATH={tmp_path}/g++\nCMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n")
    assert not build.is_stale(cache, "g++") and build.is_stale(cache, "clang++")
    cache.write_text(f"CMAKE_CXX_COMPILER:FILEPATH={tmp_path}/c++\nCMAKE_HOME_DIRECTORY:INTERNAL={tmp_path}\n")
    assert build.is_stale(cache, "c++")


@pytest.mark.parametrize("tool", ["cmake", "ninja"])
def test_no_build_tool(build, tool, tmp_path, monkeypatch):
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"{tool} not found" in refusal(build.find_tool, tool)


NVCC = ("/usr/bin/nvcc", "13.0")
NO_CUDA_TORCH = "is not a CUDA build"


@pytest.mark.parametrize(
    ("cuda", "nvcc", "reason"),
    [("13.0", None, "nvcc was not found"), (None, NVCC, NO_CUDA_TORCH), ("12.8", NVCC, "nvcc is 13.0 but torch")],
    ids=["no nvcc", "CPU torch", "other major"],
)
def test_cuda_needs_nvcc_and_a_torch_of_its_major(build, cuda, nvcc, reason):
    found = build.Torch(Path("torch"), "2.13.0", cuda)
    chosen, why = build.choose_cuda("auto", found, nvcc)
    assert not chosen and reason in why
    assert reason in refusal(build.choose_cuda, "on", found, nvcc)


def test_cuda_chosen_and_refused(build):
    found = build.Torch(Path("torch"), "2.13.0", "13.2")  # the minor may differ
    assert build.choose_cuda("auto", found, NVCC)[0]
    assert build.choose_cuda("on", found, NVCC)[0]
    assert not build.choose_cuda("off", found, NVCC)[0]
    assert "DMT_CUDA=yes" in refusal(build.choose_cuda, "yes", found, NVCC)


def test_the_engine_needs_a_distributed_torch(build, tmp_path):
    without = build.Torch(tmp_path, "2.13.0", None)
    chosen, why = build.choose_comm("auto", without)
    assert not chosen and "torch.distributed" in why
    assert why in refusal(build.choose_comm, "on", without)
    here = build.find_torch()
    assert build.choose_comm("auto", here) == build.choose_comm("on", here) == (True, "on")
    assert build.choose_comm("off", here) == (False, "DMT_COMM=off")
    assert "DMT_COMM=yes" in refusal(build.choose_comm, "yes", here)


@pytest.mark.parametrize("command", ["build_ext", "dist_info"])
def test_a_refused_build_prints_one_sentence(fake_torch, command):
    fake_torch("2.9.0")
    done = subprocess.run([sys.executable, "setup.py", "-q", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("dmt_kernels: torch 2.9.0") and "Traceback" not in done.stderr


def test_source_distribution_can_be_built_from(tmp_path):
    """And is made without torch."""
    environment = {**os.environ, "DMT_TORCH_DIR": str(tmp_path)}
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, env=environment, capture_output=True)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*") if path.is_file()}
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "dmt_kernels/py.typed", *sources} <= names
    assert not [name for name in names if name.endswith(".so")]


@pytest.mark.skipif(not LIBRARIES, reason="the libraries of this checkout are not built in place")
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not there to look into the libraries")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_know_no_path_of_the_build_machine(library):
    dynamic = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    paths = [line for line in dynamic.splitlines() if "(RUNPATH)" in line or "(RPATH)" in line]
    assert paths and all("[$ORIGIN" in path and ":" not in path.split("[")[1] for path in paths)
