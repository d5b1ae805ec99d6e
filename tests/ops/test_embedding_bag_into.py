"""embedding_bag_, which pools into memory that is there, against embedding_bag."""

import pytest
import torch
from hypothesis import given, settings

from dmt_kernels.ops import embedding_bag, embedding_bag_
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
