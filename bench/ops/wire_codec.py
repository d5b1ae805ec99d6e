"""Rows to and from the bytes that carry them between ranks, against casts and what one would write around them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench import baselines
from bench.agreement import Disagreement
from bench.ceilings import Ceilings
from bench.memory import random_values
from bench.registry import DEFAULT, FULL, QUICK, Registry, Setting, Work
from dmt_kernels import ops
from dmt_kernels.ops.reference import wire_codec as oracle
from dmt_kernels.spec import WireFormat

SHAPES = {"65536x128": (65_536, 128), "4096x3328": (4096, 3328), "tiny": (67, 20)}
CHECKED_ROWS = 256
SEED = 5


def register(registry: Registry) -> None:
    for shape in SHAPES:
        for wire_format in WireFormat:
            common = shape == "65536x128"
            effort = (QUICK if wire_format is WireFormat.BF16 else DEFAULT) if common else FULL
            for rounding, asked in (("nearest", effort), ("stochastic", max(effort, DEFAULT))):
                if rounding == "nearest" or wire_format is not WireFormat.FP32:
                    name = f"wire_encode/{shape}/{wire_format.value}/{rounding}"
                    seed = SEED if rounding == "stochastic" else None
                    registry.add(name, partial(build_encode, shape, wire_format, seed), asked)
            registry.add(f"wire_decode/{shape}/{wire_format.value}", partial(build_decode, shape, wire_format), effort)


def build_encode(shape: str, wire_format: WireFormat, seed: int | None, setting: Setting) -> Work:
    x = make_rows(shape)

    def ours() -> Tensor:
        return ops.wire_encode(x, wire_format, seed=seed)

    peers = baselines.contenders("wire_encode", setting.peers if seed is None else (), x, wire_format)

    def check() -> None:
        head = x[:CHECKED_ROWS]
        message = ours()
        if not torch.equal(message[:CHECKED_ROWS], oracle.wire_encode(head, wire_format, seed=seed)):
            raise Disagreement("ours and the oracle: not the same bytes")
        check_errors("ours", message, x, wire_format, seed)
        for name, peer in peers.items():
            check_errors(name, peer(), x, wire_format, seed)

    return Work(ours, peers, check, partial(copy_floor, x, wire_format), work_bytes=moved_bytes(x, wire_format))


def build_decode(shape: str, wire_format: WireFormat, setting: Setting) -> Work:
    x = make_rows(shape)
    message = ops.wire_encode(x, wire_format)

    def ours() -> Tensor:
        return ops.wire_decode(message, x.shape[1], wire_format)

    peers = baselines.contenders("wire_decode", setting.peers, message, x.shape[1], wire_format)

    def check() -> None:
        expected = oracle.wire_decode(message, x.shape[1], wire_format)
        for name, run in {"ours": ours, **peers}.items():
            if not torch.equal(run(), expected):
                raise Disagreement(f"{name} and the oracle: not the same bits")

    return Work(ours, peers, check, partial(copy_floor, x, wire_format), work_bytes=moved_bytes(x, wire_format))


def make_rows(shape: str) -> Tensor:
    rows, columns = SHAPES[shape]
    return random_values(rows * columns, torch.float32, seed=7).view(rows, columns)


def check_errors(who: str, message: Tensor, x: Tensor, wire_format: WireFormat, seed: int | None) -> None:
    """Raise unless the message decodes to `x` within the format's error bound."""
    bound = wire_format.error_bound(stochastic=seed is not None)
    error = (oracle.wire_decode(message, x.shape[1], wire_format) - x).abs()
    allowed = bound.of_value * x.abs() + bound.of_maximum * x.abs().amax(1, keepdim=True) + bound.least
    # A peer may scale by another number, and round it.
    if (error > 1.01 * allowed).any():
        raise Disagreement(f"{who}: {float(error.max())} off, beyond the bound of {wire_format.value}")


def moved_bytes(x: Tensor, wire_format: WireFormat) -> float:
    """Rows and message, one read and the other written."""
    return float(x.numel() * x.itemsize + len(x) * wire_format.row_bytes(x.shape[1]))


def copy_floor(x: Tensor, wire_format: WireFormat, ceilings: Ceilings) -> dict[str, float]:
    return {"copy": ceilings.copy(int(moved_bytes(x, wire_format) / 2))}
