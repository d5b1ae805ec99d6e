"""Oracle of the wire formats: the same bytes, by the casts of PyTorch and, where they are scaled, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.spec import WireFormat

# Bits of the payload's mantissa, exponent of its least normal number.
_FLOATS = {WireFormat.FP16: (10, -14), WireFormat.FP8: (3, -6)}
_CASTS = {
    WireFormat.FP32: torch.float32,
    WireFormat.BF16: torch.bfloat16,
    WireFormat.FP16: torch.float16,
    WireFormat.FP8: torch.float8_e4m3fn,
    WireFormat.INT8: torch.int8,
}


def wire_encode(
    input: Tensor, format: WireFormat | str | int, seed: int | None = None, step: int = 0, first_row: int = 0
) -> Tensor:
    """Encode rows; arguments and result as in `dmt_kernels.wire_encode`, or as in its op."""
    format = _format(format)
    x = input.float()
    words = None if seed is None else random_words(seed, step, first_row, *x.shape).to(x.device)
    if format is WireFormat.FP32:
        return _bytes(torch.where(x.isnan(), torch.nan, x))  # the cast from halves gives NaNs bits by their place
    if format is WireFormat.BF16:
        payload = x.to(torch.bfloat16) if words is None else _bfloat16_at_random(x, words)
        return _padded(_bytes(torch.where(x.isnan(), torch.nan, payload)))
    scale = row_scale(x, format)
    return torch.cat([_padded(_bytes(_scaled_payload(x, scale, format, words))), _bytes(scale)], dim=1)


def wire_decode(message: Tensor, dim: int, format: WireFormat | str | int, dtype: torch.dtype | None = None) -> Tensor:
    """Decode rows; arguments and result as in `dmt_kernels.wire_decode`, or as in its op."""
    format, dtype = _format(format), dtype or torch.float32
    payload = _numbers(message[:, : dim * format.element_bytes], _CASTS[format])
    if not format.is_scaled:
        return payload.to(dtype)
    scale = _numbers(message[:, format.payload_bytes(dim) :], torch.float32)
    return (payload.float() * scale).to(dtype)


def wire_encode_blocks_(
    message: Tensor, blocks: list[Tensor], format: int, seed: int | None = None, step: int = 0, first_row: int = 0
) -> None:
    """Encode one block behind the other."""
    begin = 0
    for block in blocks:
        encoded = wire_encode(block, format, seed, step, first_row).flatten()
        message[begin : begin + len(encoded)] = encoded
        begin, first_row = begin + len(encoded), first_row + len(block)


def wire_decode_blocks_(blocks: list[Tensor], message: Tensor, format: int) -> None:
    """Decode them again."""
    sizes = [len(block) * _format(format).row_bytes(block.shape[1]) for block in blocks]
    for block, piece in zip(blocks, message.split(sizes), strict=True):
        rows = piece.view(len(block), _format(format).row_bytes(block.shape[1]))
        block.copy_(wire_decode(rows, block.shape[1], format, block.dtype))


def row_scale(x: Tensor, format: WireFormat) -> Tensor:
    """The scale of each row of `x`, float32, as ``[N, 1]``."""
    if not x.shape[1]:
        return x.new_ones(len(x), 1)
    maximum = x.abs().amax(dim=1, keepdim=True).double()  # NaN when there is one
    least_step = 1.0
    if format is WireFormat.INT8:
        scale = (maximum / 127).float().double()
        # A denormal is rounded up, or 127 steps might not reach the maximum.
        lifted = (maximum * 2.0**64 / 127).float().double()
        scale = torch.where(lifted < 2.0**-62, (lifted * 2.0**85).ceil() * 2.0**-149, scale)
    else:
        mantissa_bits, least_exponent = _FLOATS[format]
        least_step = 2.0 ** (least_exponent - mantissa_bits)
        mantissa, exponent = maximum.frexp()  # in [0.5, 1)
        if format is WireFormat.FP16:
            exponent = exponent - 15
        else:
            exponent = torch.where(mantissa <= 448 / 512, exponent - 9, exponent - 8)
        scale = torch.ldexp(torch.ones_like(maximum), exponent)
    scale = scale.clamp(min=2.0**-149 / least_step)
    scale = torch.where(maximum == 0, 1.0, scale)
    return torch.where(maximum.isfinite(), scale, torch.nan).float()


def random_words(seed: int, step: int, first_row: int, rows: int, columns: int) -> Tensor:
    """The 32 random bits of each element, as ``[rows, columns]`` of int64."""
    return words_of_rows(message_key(seed, step), range(first_row, first_row + rows), columns)


def words_of_rows(key: int, rows: Sequence[int], columns: int) -> Tensor:
    """The same of any rows, by their message's (or table's) key."""
    keys = [_mix(key + row) for row in rows]
    low = torch.tensor([key & 0xFFFFFFFF for key in keys], dtype=torch.int64).view(len(keys), 1)
    high = torch.tensor([key >> 32 for key in keys], dtype=torch.int64).view(len(keys), 1)
    x = (torch.arange(columns) + low) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    x = x ^ high
    x = ((x ^ (x >> 15)) * 0xD35A2D97) & 0xFFFFFFFF
    return x ^ (x >> 15)


def message_key(seed: int, step: int) -> int:
    """The 64 bits from which those of each row are made."""
    return _mix(_mix(seed) + step)


def _mix(x: int) -> int:
    """The finalizer of splitmix64."""
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def _scaled_payload(x: Tensor, scale: Tensor, format: WireFormat, words: Tensor | None) -> Tensor:
    finite = scale.isfinite()
    scale = torch.where(finite, scale, 1.0)
    x = torch.where(finite, x, 0.0)
    if format is WireFormat.INT8:
        # In float32, as the kernels do; rows of denormals are lifted first, or 1 / scale would be inf.
        lift = torch.where(x.abs().amax(dim=1, keepdim=True) < 2.0**-60, 2.0**64, 1.0).float() if x.numel() else 1.0
        values = (x * lift * (1 / (scale * lift))).double().clamp(-127, 127)
        step = torch.ones_like(values)
        fraction_bits = torch.full_like(values, 24).long()
    else:
        values = x.double() / scale.double()
        mantissa_bits, least_exponent = _FLOATS[format]
        exponent = values.frexp().exponent - 1
        step = torch.ldexp(torch.ones_like(values), exponent.clamp(min=least_exponent) - mantissa_bits)
        is_normal = values.abs() >= 2.0**least_exponent
        fraction_bits = torch.where(is_normal, 23 - mantissa_bits, 31 - mantissa_bits)
    if words is not None:
        values = _at_random(values, step, words, fraction_bits)
    elif format is WireFormat.INT8:
        values = values.round()
    return values.float().to(_CASTS[format])


def _bfloat16_at_random(x: Tensor, words: Tensor) -> Tensor:
    """Every number that float32 has beside `x` is a step away, up to inf: so its bits are rounded."""
    bits = x.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    rounded = torch.where(x.isfinite(), (bits + (words >> 16)) & 0xFFFF0000, bits)
    signed = torch.where(rounded >= 2**31, rounded - 2**32, rounded)
    return signed.to(torch.int32).view(torch.float32).to(torch.bfloat16)


def _at_random(values: Tensor, step: Tensor, words: Tensor, fraction_bits: Tensor) -> Tensor:
    """Down to a multiple of `step` after a fraction of it, of that many random bits, was added to the magnitude."""
    fraction = (words >> (32 - fraction_bits)).double() * torch.ldexp(torch.ones_like(values), -fraction_bits)
    return ((values.abs() / step + fraction).floor() * step).copysign(values)


def _format(format: WireFormat | str | int) -> WireFormat:
    return WireFormat.from_code(format) if isinstance(format, int) else WireFormat(format)


def _bytes(payload: Tensor) -> Tensor:
    return payload.flatten().view(torch.uint8).view(len(payload), payload.shape[1] * payload.itemsize)


def _numbers(payload: Tensor, dtype: torch.dtype) -> Tensor:
    return payload.flatten().view(dtype).view(len(payload), payload.shape[1] // dtype.itemsize)


def _padded(payload: Tensor) -> Tensor:
    """With zeros up to a multiple of 4 bytes."""
    return torch.nn.functional.pad(payload, (0, -payload.shape[1] % 4))
