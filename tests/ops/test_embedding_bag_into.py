"""embedding_bag_, which pools into memory that is there, against embedding_bag."""

import pytest
import torch
from hypothesis import given, settings

from dmt_kernels.ops import embedding_bag, embedding_bag_, embedding_bag_blocks_
from tests.ops.bags import DTYPES, bags, random_bags


@settings(max_examples=60, deadline=None)
@given(bags())
def test_the_same_bits(batch):
    expected = embedding_bag(*batch.args, **batch.options)
    out = torch.full_like(expected, float("nan"))
    embedding_bag_(out, *batch.args, **batch.options)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    batch = random_bags(dtype=dtype)
    out = torch.zeros_like(embedding_bag(*batch.args, **batch.options))
    torch.library.opcheck(torch.ops.dmt.embedding_bag_.default, (out, list(batch.tables), batch.ids, batch.offsets))


def test_what_does_not_fit_is_refused_before_anything_is_written():
    tables, ids, offsets = [torch.ones(3, 4)], torch.tensor([0, 3]), torch.tensor([0, 1, 2])
    out = torch.full((2, 4), 7.0)
    with pytest.raises(RuntimeError, match="id 3"):
        embedding_bag_(out, tables, ids, offsets)
    assert bool((out == 7).all())
    embedding_bag_(out, tables, ids, offsets, bounds="none")
    assert out.tolist() == [[1.0] * 4, [0.0] * 4]
    for wrong in (torch.zeros(2, 5), torch.zeros(4, 2).t(), torch.zeros(2, 4, dtype=torch.float64), torch.zeros(8)):
        with pytest.raises(RuntimeError, match="embedding_bag_: out must be"):
            embedding_bag_(wrong, tables, ids, offsets, bounds="none")


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("into", ["rows", "blocks"])
def test_memory_that_was_saved_for_backward_is_seen_to_change(into, direct):
    bags = [torch.ones(3, 4)], torch.tensor([0, 2]), torch.tensor([0, 1, 2])
    out, x = torch.ones(2, 4), torch.ones(2, 4, requires_grad=True)
    product = (x * out).sum()
    if into == "rows":
        (torch.ops.dmt.embedding_bag_ if direct else embedding_bag_)(out, *bags)
    else:
        (torch.ops.dmt.embedding_bag_blocks_ if direct else embedding_bag_blocks_)([out], *bags)
    assert out._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
