"""Options of ``pytest bench --benchmark-only``."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-filter", default="", help="all cases whose names hold these words, not the default ones")
