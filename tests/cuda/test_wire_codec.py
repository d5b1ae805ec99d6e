"""The CUDA codecs give the bytes of the CPU's, thread by thread."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_kernels.ops import wire_decode, wire_encode
from dmt_kernels.spec import WireFormat
from tests.cuda.places import assert_same_bits, places
from tests.ops.bags import DTYPES
from tests.ops.wire_rows import random_rows, wire_rows

pytestmark = places
FORMATS = list(WireFormat)
SEEDS = st.none() | st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=150, deadline=None)
@given(wire_rows(DTYPES), st.sampled_from(FORMATS), SEEDS, st.integers(0, 2**40), st.integers(0, 2**40))
def test_bytes_of_the_cpu(op, x, wire_format, seed, step, first_row):
    expected = wire_encode(x, wire_format, seed=seed, step=step, first_row=first_row)
    assert torch.equal(op("wire_encode")(x, wire_format.code, seed, step, first_row), expected)


@settings(max_examples=100, deadline=None)
@given(wire_rows(), st.sampled_from(FORMATS), SEEDS, st.sampled_from(DTYPES), st.sampled_from([0, 1, 4]))
def test_numbers_of_the_cpu(op, x, wire_format, seed, dtype, gap):
    message = torch.nn.functional.pad(wire_encode(x, wire_format, seed=seed), (0, gap))
    message = message[:, : message.shape[1] - gap]
    actual = op("wire_decode")(message, x.shape[1], wire_format.code, dtype)
    assert_same_bits(actual, wire_decode(message, x.shape[1], wire_format, dtype))


def test_every_payload_decodes(op):
    for wire_format in (WireFormat.BF16, WireFormat.FP16, WireFormat.FP8, WireFormat.INT8):
        size = wire_format.element_bytes
        every = torch.arange(2 ** (8 * size), dtype=torch.int32).view(torch.uint8).view(-1, 4)[:, :size].flatten()
        dim = len(every) // size
        scale = torch.tensor([0.375]).view(torch.uint8) if wire_format.is_scaled else every[:0]
        message = torch.cat([every, scale])[None]
        assert_same_bits(op("wire_decode")(message, dim, wire_format.code), wire_decode(message, dim, wire_format))


def between_payloads(wire_format):
    """What each payload is without a scale, what is half way to the next, and the floats beside those."""
    size = wire_format.element_bytes
    payloads = torch.arange(2 ** (8 * size - 1), dtype=torch.int32).view(torch.uint8).view(-1, 4)[:, :size].flatten()
    scale = torch.ones(1).view(torch.uint8)
    values = wire_decode(torch.cat([payloads, scale])[None], 2 ** (8 * size - 1), wire_format)[0]
    anchor = {WireFormat.FP16: 2.0**14, WireFormat.FP8: 448.0, WireFormat.INT8: 127.0}[wire_format]  # gives the scale 1
    values = values[values < 2 * anchor if wire_format == WireFormat.FP16 else values <= anchor]
    middles = (values[1:] + values[:-1]) / 2
    beside = [torch.nextafter(x, torch.tensor(to)) for x in (values, middles) for to in (0.0, anchor)]
    x = torch.cat([values, middles, *beside])
    x = torch.cat([x, -x])
    x = torch.nn.functional.pad(x, (0, -len(x) % 255)).view(-1, 255)
    return torch.cat([torch.full((len(x), 1), anchor), x], dim=1)


def test_every_rounding(op):
    tails = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32)  # the first of a float: every bf16, infs and NaNs too
    floats = (halves[:, None] * 2**16 + tails).view(torch.float32).view(-1, 384)
    cases = [(wire_format, between_payloads(wire_format)) for wire_format in FORMATS if wire_format.is_scaled]
    for wire_format, x in [*cases, (WireFormat.BF16, floats)]:
        assert torch.equal(op("wire_encode")(x, wire_format.code, None, 0, 0), wire_encode(x, wire_format))


def test_blocks_lie_one_behind_the_other(op):
    wide = random_rows(0, 7, 40, 3, 9, torch.bfloat16)
    blocks = [wide[:, 1:13], wide[2:4, 8:40], wide[:0, :5], random_rows(1, 3, 9, 3, 9, torch.float64)]
    for wire_format in FORMATS:
        sizes = [len(block) * wire_format.row_bytes(block.shape[1]) for block in blocks]
        message = torch.empty(sum(sizes), dtype=torch.uint8)
        op("wire_encode_blocks_")(message, blocks, wire_format.code, 5, 2, 100)
        expected = torch.empty_like(message)
        torch.ops.dmt.wire_encode_blocks_(expected, blocks, wire_format.code, 5, 2, 100)
        assert torch.equal(message, expected)
        decoded = [torch.zeros_like(block) for block in blocks]
        op("wire_decode_blocks_")(decoded, message, wire_format.code)
        wanted = [torch.zeros_like(block) for block in blocks]
        torch.ops.dmt.wire_decode_blocks_(wanted, message, wire_format.code)
        for a, b in zip(decoded, wanted, strict=True):
            assert_same_bits(a, b)
