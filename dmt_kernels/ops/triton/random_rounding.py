"""Stochastic rounding: the random words, and weights rounded by them, in the bits of csrc/kernels/random_rounding.h."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bits_of(x):
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def float_of(bits):
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def mix_bits(x):
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def random_words(key, columns):
    x = columns.to(tl.uint32) + (key & 0xFFFFFFFF).to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x ^= (key >> 32).to(tl.uint32)
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x ^ (x >> 15)


@triton.jit
def at_random(x, words, like):
    """Weights as they are stored behind the pointer `like`, to 16 bits."""
    bits = bits_of(x)
    magnitude = bits & 0x7FFFFFFF
    if like.dtype.element_ty == tl.bfloat16:
        rounded = tl.where(magnitude > 0x7F800000, 0x7FC0, (bits + (words >> 16)) >> 16)
    else:
        normal = ((magnitude + (words >> 19)) >> 13) - (112 << 10)
        is_small = magnitude < 0x38800000  # 2^-14, the least normal half
        fixed = (tl.where(is_small, float_of(magnitude), 0.0) * 35184372088832.0).to(tl.int32).to(tl.uint32)
        finite = tl.where(is_small, (fixed + (words >> 11)) >> 21, normal)
        special = tl.where(magnitude > 0x7F800000, 0x7E00, 0x7C00)
        rounded = tl.where(magnitude >= 0x47800000, special, finite) | ((bits >> 16) & 0x8000)
    return rounded.to(tl.uint16).to(like.dtype.element_ty, bitcast=True)
