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

    @functools.cache
    def disabled() -> Callable[_Arguments, _Result]:
        return torch.compiler.disable(function)

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        return (disabled() if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    return call
