"""No function or class takes the place of another one of its module: a test that is shadowed never runs its body."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("bench", "dmt_kernels", "tests") for path in (ROOT / folder).rglob("*.py"))


def defined_twice(source: str) -> list[str]:
    """Names that a module defines again by def or class: not inside an if or a try, no overloads and no `_`."""
    seen, twice = set(), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if any(ast.unparse(decorator).split(".")[-1] == "overload" for decorator in node.decorator_list):
                continue
            if node.name in seen and node.name != "_":  # what a decorator has registered needs no name
                twice.append(f"{node.name}, line {node.lineno}")
            seen.add(node.name)
    return twice


def test_no_name_is_defined_twice():
    found = {str(path.relative_to(ROOT)): defined_twice(path.read_text()) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_planted_second_definition_is_found():
    assert defined_twice("def f(): ...\n\ndef g(): ...\n\nclass f: ...") == ["f, line 5"]


@pytest.mark.parametrize(
    "source",
    [
        "@overload\ndef f(x: int): ...\n@typing.overload\ndef f(x: str): ...\ndef f(x): ...",
        "if x:\n    def f(): ...\nelse:\n    def f(): ...",
        "def f():\n    def g(): ...\n\ndef g(): ...",
    ],
)
def test_overloads_and_conditional_definitions_pass(source):
    assert defined_twice(source) == []
