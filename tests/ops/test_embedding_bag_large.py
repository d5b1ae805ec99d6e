"""Large outputs have the bits of small ones: the kernel streams them past the caches if they are whole lines."""

import pytest
import torch

from dmt_kernels.ops import embedding_bag, embedding_bag_
from tests.ops.bags import DTYPES

SAMPLES = 12_288
PIECE = 512  # samples of a call that is too small to be streamed


def in_pieces(tables, ids, offsets, **options):
    """Every feature's bags, some samples at a time."""
    features = len(tables)
    bounds = offsets.view(-1)[:-1].view(features, SAMPLES)
    rows = []
    for first in range(0, SAMPLES, PIECE):
        lengths = offsets.diff().view(features, SAMPLES)[:, first : first + PIECE]
        taken = [ids[int(bounds[f, first]) : int(bounds[f, first]) + int(lengths[f].sum())] for f in range(features)]
        ends = torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 0))
        rows.append(embedding_bag(tables, torch.cat(taken), ends, **options))
    return torch.cat(rows)


@pytest.mark.parametrize("dims", [(64, 32, 128), (64, 20)], ids=["whole-lines", "odd"])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_outputs_have_the_bits_of_small_ones(dtype, pooling, dims):
    generator = torch.Generator().manual_seed(3)
    tables = [torch.randn(50, dim, generator=generator).to(dtype) for dim in dims]
    lengths = torch.randint(0, 3, (len(dims) * SAMPLES,), generator=generator)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    ids = torch.randint(50, (int(offsets[-1]),), generator=generator)
    expected = in_pieces(tables, ids, offsets, pooling=pooling)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(embedding_bag(tables, ids, offsets, pooling=pooling), expected)
    finally:
        torch.set_num_threads(before)
    unaligned = torch.empty(expected.numel() + 1, dtype=dtype)[1:].view(expected.shape)
    embedding_bag_(unaligned, tables, ids, offsets, pooling=pooling)
    assert torch.equal(unaligned, expected)
