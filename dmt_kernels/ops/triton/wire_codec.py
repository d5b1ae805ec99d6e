"""The codecs in Triton, a program per row: the arithmetic of csrc/kernels/cuda/wire_element.h, hence the same bytes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmt_kernels.ops.reference.wire_codec import message_key
from dmt_kernels.ops.triton.bags import as_element
from dmt_kernels.ops.triton.checks import check, check_blocks, check_dimensions, check_format, check_matrix
from dmt_kernels.ops.triton.random_rounding import bits_of, float_of, mix_bits, random_words
from dmt_kernels.spec import WireFormat

_FP32, _BF16, _FP16, _FP8, _INT8 = map(tl.constexpr, range(5))


@triton.jit
def short_float(x, words, RANDOM: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    DROPPED: tl.constexpr = 23 - MANTISSA
    bits = bits_of(x)
    magnitude = bits & 0x7FFFFFFF
    rebias = (127 - BIAS) << MANTISSA
    if RANDOM:
        fixed = (float_of(magnitude) * float_of(tl.full([1], (157 + BIAS) << 23, tl.uint32))).to(tl.int32).to(tl.uint32)
        subnormal = (fixed + (words >> (MANTISSA + 1))) >> (31 - MANTISSA)
        normal = ((magnitude + (words >> (32 - DROPPED))) >> DROPPED) - rebias
    else:
        aligner = tl.full([1], (151 - BIAS - MANTISSA) << 23, tl.uint32)
        subnormal = bits_of(float_of(magnitude) + float_of(aligner)) - aligner
        normal = ((magnitude + ((magnitude >> DROPPED) & 1) + ((1 << (DROPPED - 1)) - 1)) >> DROPPED) - rebias
    SIGN: tl.constexpr = 31 - MANTISSA - (4 if MANTISSA == 3 else 5)
    return tl.where(magnitude < ((128 - BIAS) << 23), subnormal, normal) | ((bits & 0x80000000) >> SIGN)


@triton.jit
def payload_of(x, words, FORMAT: tl.constexpr, RANDOM: tl.constexpr):
    bits = bits_of(x)
    if FORMAT == _FP32:
        result = bits
    elif FORMAT == _BF16:
        if RANDOM:
            result = (bits + (words >> 16)) >> 16
        else:
            result = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
        result = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, result)
    elif FORMAT == _FP16:
        result = short_float(x, words, RANDOM, 10, 15)
    elif FORMAT == _FP8:
        result = short_float(x, words, RANDOM, 3, 7)
    elif RANDOM:
        fixed = (tl.minimum(tl.abs(x), 127.0) * 16777216.0).to(tl.int32).to(tl.uint32)
        count = (fixed + (words >> 8)) >> 24
        result = tl.where((bits >> 31) != 0, 0 - count, count) & 0xFF
    else:
        result = bits_of(x + 12582912.0) & 0xFF
    return result.to(tl.uint32)


@triton.jit
def load_row(values, columns, dim):
    x = tl.load(values + columns, mask=columns < dim, other=0).to(tl.float32)
    if values.dtype.element_ty == tl.float16:  # GPUs give a NaN other bits
        bits = bits_of(x)
        x = float_of(tl.where((bits & 0x7FFFFFFF) > 0x7F800000, (bits & 0x80000000) | 0x7FC00000, bits))
    return x


@triton.jit
def row_scale(maximum, FORMAT: tl.constexpr):
    """Of a row with this maximum of magnitudes, as bits: scale, lift, inverse (see RowScale)."""
    is_small = maximum < 0x21800000
    lift = tl.where(is_small, 18446744073709551616.0, 1.0)
    lifted_maximum = bits_of(float_of(maximum) * lift)
    if FORMAT == _FP16:
        lifted = float_of(((lifted_maximum >> 23) - 14) << 23)
        least = float_of(tl.full([], 2 << 23, tl.uint32))
    elif FORMAT == _FP8:
        lifted = float_of((((lifted_maximum + 0x1FFFFF) >> 23) - 8) << 23)
        least = float_of(tl.full([], 1 << 9, tl.uint32))
    else:
        lifted = tl.div_rn(float_of(lifted_maximum), 127.0)
        least = float_of(tl.full([], 1, tl.uint32))
    scale = lifted * tl.where(is_small, 5.421010862427522e-20, 1.0)
    scale = tl.where(scale < least, least, scale)
    scale = tl.where(scale * lift < lifted, float_of(bits_of(scale) + 1), scale)  # was rounded down
    inverse = tl.div_rn(1.0, scale * lift)
    is_zero = maximum == 0
    scale = tl.where(is_zero, 1.0, tl.where(maximum >= 0x7F800000, float("nan"), scale))
    return scale, tl.where(is_zero, 1.0, lift), tl.where(is_zero, 1.0, inverse)


@triton.jit
def encode_kernel(
    values, message, key, first_row, stride, dim, row_bytes, payload_bytes,
    FORMAT: tl.constexpr, RANDOM: tl.constexpr, BYTES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    values += row * stride
    target = message + row * row_bytes
    if FORMAT >= _FP16:
        maximum = tl.zeros([], tl.uint32)
        for first in range(0, dim, COLUMNS):
            magnitude = bits_of(load_row(values, first + tl.arange(0, COLUMNS), dim)) & 0x7FFFFFFF
            maximum = tl.maximum(maximum, tl.max(magnitude.to(tl.int32), axis=0).to(tl.uint32))
        scale, lift, inverse = row_scale(maximum, FORMAT)
        tl.store(
            (target + payload_bytes).to(tl.pointer_type(tl.uint32)),
            tl.where(scale == scale, bits_of(scale), 0x7FC00000),
        )
        is_number = scale == scale
    row_key = mix_bits(key.to(tl.uint64) + (first_row + row).to(tl.uint64))
    for first in range(0, payload_bytes // BYTES, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        x = load_row(values, columns, dim)
        if FORMAT >= _FP16:
            x = tl.where(is_number, x * lift * inverse, 0.0)
        payload = payload_of(x, random_words(row_key, columns), FORMAT, RANDOM)
        payload = tl.where(columns < dim, payload, 0)
        if FORMAT >= _FP16:
            payload = tl.where(is_number, payload, 0)
        inside = columns < payload_bytes // BYTES
        if BYTES == 4:
            tl.store(target.to(tl.pointer_type(tl.uint32)) + columns, payload, mask=inside)
        elif BYTES == 2:
            tl.store(target.to(tl.pointer_type(tl.uint16)) + columns, payload.to(tl.uint16), mask=inside)
        else:
            tl.store(target + columns, payload.to(tl.uint8), mask=inside)


@triton.jit
def decode_kernel(
    message, values, message_stride, stride, dim, payload_bytes,
    FORMAT: tl.constexpr, BYTES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    source = message + row * message_stride
    values += row * stride
    for first in range(0, dim, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < dim
        payload = tl.zeros([COLUMNS], tl.uint32)
        for byte in tl.static_range(BYTES):  # messages may lie anywhere
            payload |= tl.load(source + columns * BYTES + byte, mask=inside, other=0).to(tl.uint32) << (8 * byte)
        if FORMAT == _FP32:
            x = float_of(payload)
        elif FORMAT == _BF16:
            x = float_of(payload << 16)
        elif FORMAT == _FP16:
            x = payload.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        elif FORMAT == _FP8:
            magnitude = payload & 0x7F
            normal = (magnitude << 20) + (120 << 23)
            subnormal = bits_of(magnitude.to(tl.float32) * 0.001953125)
            finite = tl.where(magnitude < 8, subnormal, normal)
            x = float_of(tl.where(magnitude == 0x7F, 0x7FC00000, finite) | ((payload & 0x80) << 24))
        else:
            x = ((payload << 24).to(tl.int32, bitcast=True) >> 24).to(tl.float32)
        if FORMAT >= _FP16:
            scale = tl.zeros([], tl.uint32)
            for byte in tl.static_range(4):
                scale |= tl.load(source + payload_bytes + byte).to(tl.uint32) << (8 * byte)
            x *= float_of(scale)
        tl.store(values + columns, as_element(x, values), mask=inside)


def _columns(dim: int) -> int:
    return min(1024, triton.next_power_of_2(max(dim, 4)))


def _encode_into(target: Tensor, rows: Tensor, wire: WireFormat, seed: int | None, step: int, first_row: int) -> None:
    """`target`: bytes, adjacent, from a multiple of 4 on."""
    if rows.dtype == torch.float64:
        rows = rows.float()
    rows = rows if rows.size(1) <= 1 or rows.stride(1) == 1 else rows.contiguous()
    count, dim = rows.shape
    if not target.numel():
        return
    key = 0 if seed is None else message_key(seed, step)
    encode_kernel[(count,)](
        rows, target, key - 2**64 if key >= 2**63 else key, first_row, rows.stride(0), dim, wire.row_bytes(dim),
        wire.payload_bytes(dim), FORMAT=wire.code, RANDOM=seed is not None, BYTES=wire.element_bytes,
        COLUMNS=_columns(dim),
    )  # fmt: skip


def _decode_into(rows: Tensor, message: Tensor, stride: int, wire: WireFormat) -> None:
    if not rows.numel():
        return
    target = rows.float() if rows.dtype == torch.float64 else rows
    decode_kernel[(rows.size(0),)](
        message, target, stride, target.stride(0), rows.size(1), wire.payload_bytes(rows.size(1)),
        FORMAT=wire.code, BYTES=wire.element_bytes, COLUMNS=_columns(rows.size(1)),
    )  # fmt: skip
    if target is not rows:
        rows.copy_(target)


def wire_encode(input: Tensor, format: int, seed: int | None = None, step: int = 0, first_row: int = 0) -> Tensor:
    """As ``torch.ops.dmt.wire_encode``."""
    wire = check_format("wire_encode", format)
    check_dimensions("wire_encode", "input", input)
    check_matrix("wire_encode", "input", input, input.shape, input)
    message = input.new_empty(input.size(0), wire.row_bytes(input.size(1)), dtype=torch.uint8)
    _encode_into(message, input, wire, seed, step, first_row)
    return message


def wire_decode(message: Tensor, dim: int, format: int, dtype: torch.dtype | None = None) -> Tensor:
    """As ``torch.ops.dmt.wire_decode``."""
    row_bytes = check_format("wire_decode", format).row_bytes(dim)
    fits = message.dtype == torch.uint8 and message.dim() == 2 and message.size(1) == row_bytes
    check(fits, "wire_decode", f"message must be uint8, [N, {row_bytes}], got {list(message.shape)}")
    check(dtype is None or dtype.is_floating_point, "wire_decode", f"dtype must be floating point, not {dtype}")
    message = message if message.size(1) <= 1 or message.stride(1) == 1 else message.contiguous()
    rows = message.new_empty(message.size(0), dim, dtype=dtype or torch.float32)
    _decode_into(rows, message, message.stride(0), WireFormat.from_code(format))
    return rows


def wire_encode_blocks_(
    message: Tensor, blocks: list[Tensor], format: int, seed: int | None = None, step: int = 0, first_row: int = 0
) -> None:
    """As ``torch.ops.dmt.wire_encode_blocks_``."""
    check_blocks("wire_encode_blocks_", blocks, message, check_format("wire_encode_blocks_", format))
    begin = 0
    for block in blocks:
        size = len(block) * WireFormat.from_code(format).row_bytes(block.size(1))
        _encode_into(message[begin : begin + size], block, WireFormat.from_code(format), seed, step, first_row)
        begin, first_row = begin + size, first_row + len(block)


def wire_decode_blocks_(blocks: list[Tensor], message: Tensor, format: int) -> None:
    """As ``torch.ops.dmt.wire_decode_blocks_``."""
    check_blocks("wire_decode_blocks_", blocks, message, check_format("wire_decode_blocks_", format))
    begin = 0
    for block in blocks:
        row_bytes = WireFormat.from_code(format).row_bytes(block.size(1))
        _decode_into(block, message[begin : begin + len(block) * row_bytes], row_bytes, WireFormat.from_code(format))
        begin += len(block) * row_bytes
