"""Runs the Triton twins on the CPU (TRITON_INTERPRET=1) beside the CPU's kernels. Called by test_triton.py."""

import itertools

import torch

from dmt_kernels.ops.triton import embedding_bag, tower_pool, wire_codec
from dmt_kernels.spec import WireFormat
from tests.cuda.test_embedding_bag import arguments
from tests.ops.bags import random_bags
from tests.ops.wire_rows import EXPONENTS, SPECIALS, random_rows

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def check_bags() -> None:
    cases = itertools.product(["sum", "mean"], DTYPES, [False, True], [False, True])
    for seed, (pooling, dtype, weighted, shard) in enumerate(cases):
        case = random_bags(
            seed=seed, dims=(5, 40, 3), rows=(11, 7, 5), features=[1, 0, 2, 1], blocks=2, samples=3, dtype=dtype,
            id_dtype=[torch.int32, torch.int64][seed % 2], pooling=pooling, weighted=weighted, shard=shard,
            missing=True, block_order=[1, 0], slack=2,
        )  # fmt: skip
        given = arguments(case)
        close(embedding_bag.embedding_bag(*given), torch.ops.dmt.embedding_bag(*given), 0)
        tables, ids, offsets, *layout = given
        weight, bias = torch.randn(70, case.width).to(dtype), torch.randn(70).to(dtype)
        products, some_bias = [None, torch.bfloat16][seed % 2], [bias, None][seed // 2 % 2]
        full = (tables, ids, offsets, weight, some_bias, *layout, False, products)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        close(tower_pool.tower_pool(*full), torch.ops.dmt.tower_pool(*full), tolerance)


def check_codecs() -> None:
    for number, (wire_format, seed) in enumerate(itertools.product(WireFormat, [None, 5, -(2**63)])):
        for exponent in EXPONENTS[number % 3 :: 3]:
            x = random_rows(number, 3, 37, exponent, 20, DTYPES[number % 3] if abs(exponent) < 10 else torch.float32)
            x[0] = 0
            x[1, number % 37] = SPECIALS[number % len(SPECIALS)]
            given = (x, wire_format.code, seed, 3, 2**40)
            message = wire_codec.wire_encode(*given)
            assert torch.equal(message, torch.ops.dmt.wire_encode(*given)), (wire_format, seed, exponent)
            wide = torch.nn.functional.pad(message, (0, 3))[:, : message.shape[1]]
            dtype = DTYPES[exponent % 3]
            expected = torch.ops.dmt.wire_decode(message, 37, wire_format.code, dtype)
            close(wire_codec.wire_decode(wide, 37, wire_format.code, dtype), expected, 0)


check_bags()
check_codecs()
print("all agree")
