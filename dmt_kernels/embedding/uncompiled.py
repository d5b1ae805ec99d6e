"""Functions that ``torch.compile`` leaves alone: Dynamo would trace into buffers and messages to no use."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def uncompiled(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """``torch.compiler.disable``, but for importing Dynamo, a second, where nobody compiles."""
    disabled: list[Callable[_Arguments, _Result]] = []  # once it is needed

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call
