"""Rows more than 2^31 elements, and 2^32 bytes, behind a table's first have the bits that they have in small tables."""

import pytest
import torch

from dmt_kernels.ops import embedding_bag, embedding_update_, tower_pool
from tests.devices import on_cuda

DIM, SAMPLES, LENGTH = 128, 200, 3
FAR = 2**31 // DIM  # the first row behind so many elements


def free_bytes(device: str) -> int:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


@pytest.mark.parametrize(
    ("device", "rows"), [("cpu", 3000), pytest.param("cuda", FAR + 1000, marks=on_cuda)], ids=["cpu", "cuda"]
)
def test_far_rows(device, rows):
    if device == "cuda" and free_bytes(device) < 5e9:
        pytest.skip("less than 5 GB are free on the GPU")
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(rows - 1000, rows, (SAMPLES * LENGTH,), generator=generator)  # on the far side, but for some
    ids = torch.where(torch.rand(len(first), generator=generator) < 0.1, first % 1000, first).to(device)
    offsets = torch.arange(0, len(ids) + 1, LENGTH, device=device)
    weight = torch.randn(64, DIM, generator=generator).bfloat16().to(device)
    grad = torch.randn(SAMPLES, DIM, generator=generator).to(device)

    touched, small_ids = ids.unique(return_inverse=True)
    table = torch.empty(rows, DIM, dtype=torch.bfloat16, device=device)
    for some in (table[:1000], table[-1000:]):
        some.copy_(torch.randn(1000, DIM, generator=generator))
    small = table.index_select(0, touched)
    state, small_state = torch.ones(rows, device=device), torch.ones(len(touched), device=device)

    ones = (ids[:SAMPLES], small_ids[:SAMPLES], torch.arange(SAMPLES + 1, device=device))  # rows that are copied
    for far, near, ends in ((ids, small_ids, offsets), ones):
        assert torch.equal(embedding_bag([table], far, ends), embedding_bag([small], near, ends))
        for products in (None, torch.bfloat16):
            actual = tower_pool([table], far, ends, weight, product_dtype=products)
            assert torch.equal(actual, tower_pool([small], near, ends, weight, product_dtype=products))
    embedding_update_([table], [state], grad, ids, offsets, lr=0.1)
    embedding_update_([small], [small_state], grad, small_ids, offsets, lr=0.1)
    assert torch.equal(table[touched], small)
    assert torch.equal(state[touched], small_state) and small_state.min() > 1
