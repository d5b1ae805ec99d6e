"""What an update makes of a row and its summed gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from dmt_kernels.ops.triton.bags import as_element, feature_fields
from dmt_kernels.ops.triton.random_rounding import at_random, mix_bits, random_words

SGD, ADAGRAD, ROWWISE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SQUARES = tl.constexpr(3)  # no update: the statistic of rows


@triton.jit
def sum_of_squares(values, here):
    exact = tl.where(here, values, 0.0).to(tl.float64)
    return tl.sum(exact * exact, axis=0)


@triton.jit
def apply_to_row(
    features, like, step, f, row, grads, rank, statistic, statistic_size, lr, eps, weight_decay,
    OPTIMIZER: tl.constexpr, DECAYS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The arithmetic of csrc/kernels/row_update.h.

    `step`: None, or what weights are rounded at random by. `statistic`: None, or of whole rows by their rank: means to
    update by, or sums of squares to be written.
    """
    fields = feature_fields(features, f)
    table, stride, dim = tl.load(fields - 2).to(like.dtype), tl.load(fields - 1), tl.load(fields + 2)
    state, state_stride = tl.load(fields + 7).to(tl.pointer_type(tl.float32)), tl.load(fields + 8)
    row -= tl.load(fields + 6)
    columns = tl.arange(0, COLUMNS)
    here = columns < dim
    at, state_at = table + row * stride + columns, state + row * state_stride
    weights = tl.load(at, mask=here, other=0).to(tl.float32)
    decayed = grads
    if DECAYS:
        decayed = grads + weight_decay * weights
    if OPTIMIZER == SQUARES:
        tl.store(statistic + rank, sum_of_squares(decayed, here))
    elif OPTIMIZER == ROWWISE:
        if statistic is None:
            mean = sum_of_squares(decayed, here) / dim.to(tl.float64)
        else:
            mean = tl.load(statistic + rank, mask=rank < statistic_size, other=float("nan"))
        squares = tl.load(state_at) + mean.to(tl.float32)
        tl.store(state_at, squares)
        multiplier = tl.div_rn(lr, tl.sqrt_rn(squares) + eps)
        correction = 1.0 - multiplier * weight_decay
        weights = correction * weights - multiplier * grads
    elif OPTIMIZER == ADAGRAD:
        squares = tl.load(state_at + columns, mask=here, other=0) + decayed * decayed
        tl.store(state_at + columns, squares, mask=here)
        weights = weights - tl.div_rn(lr * decayed, tl.sqrt_rn(squares) + eps)
    else:
        weights = weights - lr * decayed
    if OPTIMIZER == SQUARES:
        pass
    elif step is None:
        tl.store(at, as_element(weights, like), mask=here)
    else:
        key = mix_bits(mix_bits(tl.load(fields + 9).to(tl.uint64)) + tl.load(step).to(tl.uint64))
        row_key = mix_bits(key + (tl.load(fields + 1) + row).to(tl.uint64))
        words = random_words(row_key, tl.load(fields + 10) + columns)
        tl.store(at, at_random(weights, words, like), mask=here)
