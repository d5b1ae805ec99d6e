"""What `import dmt_kernels` gives."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import dmt_kernels


@pytest.mark.parametrize("name", dmt_kernels.__all__)
def test_public_names_exist(name):
    assert getattr(dmt_kernels, name) is not None
    assert name in dir(dmt_kernels)


def test_all_functions_of_ops_are_here():
    functions = {name for name in dmt_kernels.ops.__all__ if name[0].islower()}
    assert functions == set(dmt_kernels.__all__) & set(dmt_kernels.ops.__all__)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no_such_op"):
        _ = dmt_kernels.no_such_op


def test_version_is_that_of_the_installed_package():
    assert dmt_kernels.__version__ == version("dmt_kernels")


def test_importing_registers_the_ops_and_nothing_heavy():
    code = """if True:
        import sys, torch, dmt_kernels
        torch.ops.dmt.embedding_bag.default, torch.ops.dmt.two_stage_all_to_all.default
        heavy = ("sklearn", "matplotlib", "rich", "triton", "dmt_kernels.models", "dmt_kernels.train")
        print([name for name in sys.modules if name.startswith(heavy)])
    """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
