"""Rows to and from the bytes that carry them between ranks: ``torch.ops.dmt.wire_encode`` and ``wire_decode``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmt_kernels.ops import _library  # noqa: F401  (the schemas come with it)
from dmt_kernels.spec import WireFormat


def wire_encode(
    input: Tensor, format: WireFormat | str, *, seed: int | None = None, step: int = 0, first_row: int = 0
) -> Tensor:
    """Encode rows as one contiguous message of bytes, in which every row has its payload and its scale.

    A message is split by rows: ``row_bytes`` times as many bytes as rows go to each rank.
    :class:`~dmt_kernels.spec.WireFormat` has the formats, what they do to inf, NaN and zeros, and their error bounds.
    For a scale per feature instead of one per row, view ``[N, F*D]`` as ``[N*F, D]``.

    Parameters
    ----------
    input : Tensor [N, D]
        float32, float16, bfloat16, or float64, which is rounded to float32 first. Columns must be adjacent in memory,
        or are copied; rows need not be. Must not require a gradient: a message has none, and the gradient of what is
        decoded travels in a format of its own. Call it in an ``autograd.Function`` or under ``torch.no_grad()``.
    format : WireFormat or its name
    seed : int, optional
        Round stochastically: up or down, so that the mean over many seeds is the number itself. Meant for gradients.
        Ranks need different seeds (:func:`~dmt_kernels.spec.derive_seed`). Without effect on fp32. By default numbers
        are rounded to nearest, ties to even.
    step, first_row : int
        An element is rounded by (seed, step, first_row + row, column) alone: another step rounds anew, and rows that
        are encoded in pieces get the bits that they get together. No result depends on the number of threads.

    Returns
    -------
    Tensor [N, format.row_bytes(D)], uint8
        The same bits on every instruction set.

    Raises
    ------
    RuntimeError
        A shape or dtype that does not fit; an input that requires a gradient while gradients are recorded.
    InputError
        An unknown format.
    """
    return torch.ops.dmt.wire_encode(input, WireFormat(format).code, seed, step, first_row)


def wire_decode(message: Tensor, dim: int, format: WireFormat | str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Decode the rows of a message.

    Parameters
    ----------
    message : Tensor [N, format.row_bytes(D)], uint8
        What :func:`wire_encode` gave, or any rows of several such messages. Rows need not be adjacent in memory.
    dim : int
        D.
    format : WireFormat or its name
    dtype : torch.dtype
        Of the result: float32, float64, float16 or bfloat16, to which float32 is rounded.

    Returns
    -------
    Tensor [N, D]
        Has no gradient.

    Raises
    ------
    RuntimeError
        A shape or dtype that does not fit.
    InputError
        An unknown format.
    """
    return torch.ops.dmt.wire_decode(message, dim, WireFormat(format).code, dtype)


@torch.library.register_fake("dmt::wire_encode")
def _(input: Tensor, format: int, seed: int | None = None, step: int = 0, first_row: int = 0) -> Tensor:
    rows, columns = input.shape
    return input.new_empty(rows, WireFormat.from_code(format).row_bytes(columns), dtype=torch.uint8)


@torch.library.register_fake("dmt::wire_decode")
def _(message: Tensor, dim: int, format: int, dtype: torch.dtype | None = None) -> Tensor:
    return message.new_empty(message.size(0), dim, dtype=dtype or torch.float32)


@torch.library.register_fake("dmt::wire_encode_blocks_")
def _(
    message: Tensor, blocks: list[Tensor], format: int, seed: int | None = None, step: int = 0, first_row: int = 0
) -> None:
    return None


@torch.library.register_fake("dmt::wire_decode_blocks_")
def _(blocks: list[Tensor], message: Tensor, format: int) -> None:
    return None


def _refuse_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    raise RuntimeError(
        "wire_encode: input requires a gradient, but a message has none; encode in an autograd.Function whose backward "
        "sends the gradient, or under torch.no_grad()"
    )


def _backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
    raise AssertionError("unreachable: a call that would need it is refused")


# A message is not differentiable, so autograd would drop the gradient without a word.
torch.library.register_autograd("dmt::wire_encode", _backward, setup_context=_refuse_gradient)
