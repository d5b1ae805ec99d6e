"""Blocks to and from one message: the bytes that they have one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_kernels.ops import wire_decode, wire_encode
from dmt_kernels.ops.reference import wire_codec as oracle
from dmt_kernels.spec import WireFormat
from tests.ops.bags import DTYPES
from tests.ops.wire_rows import wire_rows

BLOCKS = st.lists(wire_rows(DTYPES), max_size=4)
SEEDS = st.none() | st.integers(-(2**63), 2**63 - 1)
ENCODERS = (torch.ops.dmt.wire_encode_blocks_, oracle.wire_encode_blocks_)
DECODERS = (torch.ops.dmt.wire_decode_blocks_, oracle.wire_decode_blocks_)


def sizes(blocks, wire_format):
    return [len(block) * wire_format.row_bytes(block.shape[1]) for block in blocks]


@settings(max_examples=100, deadline=None)
@given(BLOCKS, st.sampled_from(list(WireFormat)), SEEDS, st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_message_is_that_of_its_blocks(blocks, wire_format, seed, step, first_row):
    pieces, row = [], first_row
    for block in blocks:
        pieces.append(wire_encode(block, wire_format, seed=seed, step=step, first_row=row).flatten())
        row += len(block)
    expected = torch.cat([torch.empty(0, dtype=torch.uint8), *pieces])
    for encode in ENCODERS:
        message = torch.full_like(expected, 0xAA)
        encode(message, blocks, wire_format.code, seed, step, first_row)
        assert torch.equal(message, expected)


@settings(max_examples=100, deadline=None)
@given(BLOCKS, st.sampled_from(list(WireFormat)))
def test_decoded_blocks_are_those_of_their_rows(blocks, wire_format):
    message = torch.empty(sum(sizes(blocks, wire_format)), dtype=torch.uint8)
    torch.ops.dmt.wire_encode_blocks_(message, blocks, wire_format.code)
    for decode in DECODERS:
        out = [torch.zeros(len(block), block.shape[1] + 1, dtype=block.dtype) for block in blocks]
        decode([wide[:, :-1] for wide in out], message, wire_format.code)
        for block, wide, piece in zip(blocks, out, message.split(sizes(blocks, wire_format)), strict=True):
            rows = piece.view(len(block), wire_format.row_bytes(block.shape[1]))
            expected = wire_decode(rows, block.shape[1], wire_format, block.dtype)
            assert torch.equal(wide[:, :-1].nan_to_num(7), expected.nan_to_num(7)) and not wide[:, -1].any()


def test_opcheck():
    blocks, message = [torch.randn(3, 5), torch.randn(2, 8)], torch.zeros(3 * 12 + 2 * 12, dtype=torch.uint8)
    torch.library.opcheck(torch.ops.dmt.wire_encode_blocks_.default, (message, blocks, WireFormat.FP8.code, 1, 2, 3))
    torch.library.opcheck(torch.ops.dmt.wire_decode_blocks_.default, (blocks, message, WireFormat.FP8.code))


def test_cuda_has_the_codec():
    """By the oracle, as long as there are no kernels."""
    for name in ("wire_encode", "wire_decode", "wire_encode_blocks_", "wire_decode_blocks_"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dmt::{name}", "CUDA")


@pytest.mark.parametrize(
    ("blocks", "message", "complaint"),
    [
        ([torch.ones(3)], torch.ones(12).byte(), r"blocks\[0\] must have 2 dimensions, got shape \[3\]"),
        ([torch.ones(1, 1).int()], torch.ones(8).byte(), r"blocks\[0\] must be float64"),
        ([torch.ones(2, 3).t()], torch.ones(24).byte(), r"blocks\[0\] must have adjacent columns"),
        ([torch.ones(2, 3)], torch.ones(15).byte(), r"message must be \[16\], adjacent in memory, for these blocks"),
        ([torch.ones(2, 3)], torch.ones(32).byte()[::2], r"message must be \[16\], adjacent in memory"),
        ([torch.ones(2, 3)], torch.ones(16), "message must be uint8, got float32"),
    ],
    ids=["dim", "dtype", "columns", "size", "stride", "message dtype"],
)
def test_bad_arguments(blocks, message, complaint):
    with pytest.raises(RuntimeError, match=f"wire_encode_blocks_: {complaint}"):
        torch.ops.dmt.wire_encode_blocks_(message, blocks, WireFormat.FP8.code)
    with pytest.raises(RuntimeError, match=f"wire_decode_blocks_: {complaint}"):
        torch.ops.dmt.wire_decode_blocks_(blocks, message, WireFormat.FP8.code)
