"""Implements, in Python, those ops of the schema that have no kernel, everywhere or on a device."""

from collections.abc import Callable
from typing import Any

import torch

from dmt_kernels.ops import _library  # noqa: F401  (the schemas come with it)

_dmt = torch.library.Library("dmt", "IMPL")


def implement(name: str, forward: Callable[..., Any], *, fake: Callable[..., Any]) -> None:
    """Register an implementation of ``dmt::name`` that stays one op when traced, and its fake."""
    _dmt.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dmt::{name}", fake, lib=_dmt)


def implement_on(device: str, name: str, forward: Callable[..., Any]) -> None:
    """Register an implementation of ``dmt::name`` for a device that has no kernel of ours."""
    _dmt.impl(name, forward, device)


def compose(name: str, forward: Callable[..., Any]) -> None:
    """Register ``dmt::name`` as a composition of other ops, which autograd and tracing see through."""
    _dmt.impl(name, forward, "CompositeImplicitAutograd")
