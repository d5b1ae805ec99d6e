"""The CUDA lookup into messages writes the bytes of the CPU's, thread by thread."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_kernels.spec import WireFormat
from tests.cuda.places import assert_same_bits, places
from tests.cuda.test_embedding_bag import arguments
from tests.ops.bags import bags, random_bags
from tests.ops.test_embedding_bag_blocks import room

pytestmark = places
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def check(op, case, are_encoded, wire_format, apart=True):
    given = arguments(case)
    pooled = torch.ops.dmt.embedding_bag(*given)
    given = given[:8]  # without the dtype of the result
    blocks, expected = (room(pooled, are_encoded, wire_format) for _ in range(2))
    if not apart:  # whole words, and whole packs
        blocks, expected = [block.contiguous() for block in blocks], [block.contiguous() for block in expected]
    op("embedding_bag_blocks_")(blocks, *given, 2, wire_format.code)
    torch.ops.dmt.embedding_bag_blocks_(expected, *given, 2, wire_format.code)
    for actual, wanted in zip(blocks, expected, strict=True):
        assert_same_bits(actual, wanted)
        assert actual._base is None or not actual.numel() or bool((actual._base[:, -1] == 77).all())


@settings(max_examples=80, deadline=None)
@given(bags(dtypes=DTYPES), st.sampled_from(list(WireFormat)), st.data())
def test_any_bags(op, case, wire_format, data):
    order = case.options["block_order"] or [0]
    check(op, case, data.draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order))), wire_format)


@pytest.mark.parametrize("wire_format", WireFormat, ids=lambda format: format.value)
@pytest.mark.parametrize("dims", [(128, 16, 64), (700, 1, 2100), (3, 1)], ids=str)
def test_wide_rows_and_several_blocks_in_one(op, dims, wire_format):
    """Rows that fill shared memory alone, and of which eight are pooled at once."""
    order = [1, 0, 3, 2]
    case = random_bags(dims=dims, rows=[50] * len(dims), blocks=4, samples=19, longest=3, block_order=order)
    for are_encoded, apart in (([True, False], True), ([True, False], False), ([True], False)):
        check(op, case, are_encoded, wire_format, apart)
