"""embedding_bag_blocks_, which pools into messages, against embedding_bag and then wire_encode."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_kernels.ops import embedding_bag, embedding_bag_blocks_, wire_encode
from dmt_kernels.ops.reference import embedding_bag_blocks as oracle
from dmt_kernels.spec import InputError, WireFormat
from tests.ops.bags import DTYPES, bags, random_bags

FORMATS = st.sampled_from(list(WireFormat))
SPECIALS = st.sampled_from([torch.inf, -torch.inf, torch.nan, -0.0, 2.0**-130, 60000.0])


def room(pooled, are_encoded, wire_format):
    """Blocks for the pooled rows, filled with something else, rows apart."""
    width = pooled.shape[1]
    blocks = []
    for is_encoded in are_encoded:
        columns = wire_format.row_bytes(width) if is_encoded else width
        dtype = torch.uint8 if is_encoded else pooled.dtype
        blocks.append(torch.full((len(pooled) // len(are_encoded), columns + 1), 77, dtype=dtype)[:, :columns])
    return blocks


def check(batch, are_encoded, wire_format):
    pooled = embedding_bag(*batch.args, **batch.options)
    blocks = room(pooled, are_encoded, wire_format)
    embedding_bag_blocks_(blocks, *batch.args, format=wire_format, **batch.options)
    rows = pooled.unflatten(0, (len(blocks), -1))
    for block, is_encoded, expected in zip(blocks, are_encoded, rows, strict=True):
        if is_encoded:
            assert torch.equal(block, wire_encode(expected, wire_format))
        else:
            torch.testing.assert_close(block, expected, rtol=0, atol=0, equal_nan=True)
        if block.numel():
            assert bool((block._base[:, -1] == 77).all()), "written beside a row"


@settings(max_examples=150, deadline=None)
@given(bags(), FORMATS, st.data())
def test_the_bytes_of_lookup_then_encode(batch, wire_format, data):
    for table in batch.tables:
        places = st.tuples(st.integers(0, len(table) - 1), st.integers(0, table.shape[1] - 1), SPECIALS)
        for row, column, value in data.draw(st.lists(places, max_size=2)):
            table[row, column] = value
    order = batch.options["block_order"] or [0]
    are_encoded = data.draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order)))
    check(batch, are_encoded, wire_format)


@pytest.mark.parametrize("wire_format", WireFormat, ids=lambda format: format.value)
@pytest.mark.parametrize("dims", [(128, 16, 64), (700, 1, 2100), (3, 1)], ids=str)
def test_many_samples_at_once_and_several_blocks_of_bags_in_one_of_rows(wire_format, dims):
    """Wide rows, of which few are pooled at once, and narrow ones, of which some thousand are."""
    order = [4, 1, 0, 5, 2, 3]
    batch = random_bags(dims=dims, rows=[50] * len(dims), blocks=6, samples=171, longest=3, block_order=order)
    for are_encoded in ([True, False, True], [True] * 6, [False, True], [True]):
        check(batch, are_encoded, wire_format)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads):
    batch = random_bags(dims=(40, 30), rows=(90, 90), blocks=2, samples=1000, block_order=[1, 0])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(batch, [True, False], WireFormat.FP8)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_oracle_and_opcheck(dtype):
    batch = random_bags(dtype=dtype, blocks=2, block_order=[1, 0])
    pooled = embedding_bag(*batch.args, **batch.options)
    blocks, expected = (room(pooled, [True, False], WireFormat.INT8) for _ in range(2))
    arguments = (list(batch.tables), batch.ids, batch.offsets, None, None, None, None, [1, 0], 0, WireFormat.INT8.code)
    torch.library.opcheck(torch.ops.dmt.embedding_bag_blocks_.default, (blocks, *arguments))
    torch.ops.dmt.embedding_bag_blocks_(blocks, *arguments)
    oracle.embedding_bag_blocks_(expected, *arguments)
    assert all(torch.equal(block, other) for block, other in zip(blocks, expected, strict=True))


def test_cuda_has_it():
    assert torch._C._dispatch_has_kernel_for_dispatch_key("dmt::embedding_bag_blocks_", "CUDA")


def test_what_does_not_fit_is_refused_before_anything_is_written():
    tables, ids, offsets = [torch.ones(3, 4)], torch.tensor([0, 3]), torch.tensor([0, 1, 2])
    block = torch.full((2, 8), 7, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="embedding_bag_blocks_: id 3"):
        embedding_bag_blocks_([block], tables, ids, offsets, format="int8")
    assert bool((block == 7).all())
    with pytest.raises(InputError, match="wire format 'fp7'"):
        embedding_bag_blocks_([block], tables, ids, offsets, format="fp7")
    for wrong, complaint in (
        ([block[:, :7]], r"blocks\[0\] must be \[2, 8\], got \[2, 7\]"),
        ([block.t().contiguous().t()], r"blocks\[0\] must have adjacent columns"),
        ([torch.ones(2, 4).half()], r"blocks\[0\] must be float32 like the tables, or uint8, got float16"),
        ([torch.ones(2, 5)], r"blocks\[0\] must be \[2, 4\], got \[2, 5\]"),
        ([block, block], "the 1 blocks of bags do not make 2 equal blocks of rows"),
        ([], "the 1 blocks of bags do not make 0 equal blocks of rows"),
    ):
        with pytest.raises(RuntimeError, match=f"embedding_bag_blocks_: {complaint}"):
            embedding_bag_blocks_(wrong, tables, ids, offsets, format="int8", bounds="none")
