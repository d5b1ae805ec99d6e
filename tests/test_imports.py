"""Imports go down: a module may import lower layers and modules of its own package, nothing else of ours."""

import ast
from pathlib import Path

import pytest

PACKAGE = "dmt_kernels"
ROOT = Path(__file__).parents[1] / PACKAGE
LAYERS = {
    **{"spec": 0, "_C": 0, "_comm": 0},
    **{"ops": 1},
    **{"comm": 2, "planner": 2, "towers": 2, "info": 2},
    **{"embedding": 3, "models": 4, "train": 5, "cli": 6},
    **{"__init__": 7, "__main__": 7},
}


def imported_modules(source: str, path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of everything of ours that a file imports, wherever in the file and whether relative or not.

    `path` is the file's, relative to the folder that holds the package. `from dmt_kernels.ops import x` gives
    dmt_kernels.ops.x: only its second part decides. A string handed to importlib is not seen.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = path.parts[: -node.level] if node.level else ()
            base = ".".join([*parents, *(node.module or "").split(".")]).strip(".")
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] == PACKAGE]


def complaints(source: str, path: Path) -> list[str]:
    """One sentence per import that points upward or sideways, or into a package that has no layer."""
    own = path.parts[1].removesuffix(".py")
    if own not in LAYERS:
        return [f"{path}: {own} has no layer; add it to LAYERS"]
    result = []
    for line, name in imported_modules(source, path):
        other = [*name.split("."), "__init__"][1]  # `import dmt_kernels` is the facade
        if other not in LAYERS:
            other = "__init__"  # `from dmt_kernels import embedding_bag` is the facade as well
        if other != own and LAYERS[other] >= LAYERS[own]:
            direction = "upward" if LAYERS[other] > LAYERS[own] else "sideways"
            result.append(f"{path}:{line}: layer {LAYERS[own]} imports {name} of layer {LAYERS[other]}: {direction}")
    return result


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    assert complaints(path.read_text(), path.relative_to(ROOT.parent)) == []


@pytest.mark.parametrize(
    ("file", "source", "direction"),
    [
        ("ops/bag.py", "import dmt_kernels.train.loop", "upward"),
        ("ops/bag.py", "from dmt_kernels import models", "upward"),
        ("ops/bag.py", "from dmt_kernels import __version__", "upward"),
        ("ops/bag.py", "import dmt_kernels", "upward"),
        ("ops/reference/bag.py", "from ...embedding import flat", "upward"),
        ("spec/tables.py", "from ..ops import embedding_bag", "upward"),
        ("spec/tables.py", "def f():\n    from .. import ops", "upward"),
        ("planner/cost.py", "from dmt_kernels.comm.mesh import Mesh", "sideways"),
        ("planner/cost.py", "from .. import towers", "sideways"),
        ("info.py", "from . import comm", "sideways"),
        ("cli.py", "from . import embedding_bag", "upward"),
    ],
)
def test_a_planted_import_is_found(file, source, direction):
    [complaint] = complaints(source, Path(PACKAGE, file))
    assert complaint.endswith(direction)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("train/loop.py", "from dmt_kernels.spec.tables import Table\nfrom ..models import dlrm\nimport torch"),
        ("train/data/npz.py", "from . import criteo\nfrom .. import metrics\nfrom dmt_kernels.train.step import step"),
        ("ops/__init__.py", "from .reference import bag"),
        ("__init__.py", "from dmt_kernels import ops"),
        ("info.py", "from dmt_kernels import _C"),
    ],
)
def test_a_downward_import_passes(file, source):
    assert complaints(source, Path(PACKAGE, file)) == []


def test_a_package_without_a_layer_is_found():
    assert "no layer" in complaints("", Path(PACKAGE, "utils.py"))[0]
