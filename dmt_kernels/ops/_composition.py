"""Implements, in Python, those ops of the schema that are compositions rather than kernels."""

from collections.abc import Callable
from typing import Any

import torch

from dmt_kernels.ops import _library  # noqa: F401  (the schemas come with it)

_dmt = torch.library.Library("dmt", "IMPL")


def implement(
    name: str,
    forward: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Register the implementation, the fake and, where the op is differentiable, the backward of ``dmt::name``."""
    _dmt.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dmt::{name}", fake, lib=_dmt)
    if backward is not None:
        torch.library.register_autograd(f"dmt::{name}", backward, setup_context=setup_context, lib=_dmt)


def compose(name: str, forward: Callable[..., Any]) -> None:
    """Register ``dmt::name`` as a composition of other ops, which autograd and tracing see through."""
    _dmt.impl(name, forward, "CompositeImplicitAutograd")
