"""Predictions come back in the order of the rows."""

import torch

from dmt_kernels.comm import build_mesh
from dmt_kernels.train.predict import in_global_order
from tests.ranks import run_ranks

BATCHES, SAMPLES = 3, 2


def gather(rank):
    mesh = build_mesh(2, 1, timeout_s=30)
    rows = torch.arange(BATCHES * 2 * SAMPLES, dtype=torch.float64).view(BATCHES, 2, SAMPLES)
    shares = torch.stack([rows[:, rank], -rows[:, rank]], dim=1)  # [batches, columns, B]
    return in_global_order(shares, mesh)


def test_rows_of_all_ranks_in_global_order_on_rank_0():
    rows, nothing = run_ranks(gather, 2)
    expected = torch.arange(BATCHES * 2 * SAMPLES, dtype=torch.float64)
    torch.testing.assert_close(rows, torch.stack([expected, -expected]), rtol=0, atol=0)
    assert nothing is None


def test_one_process():
    shares = torch.arange(12.0).view(3, 2, 2)
    assert in_global_order(shares, None).tolist() == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
