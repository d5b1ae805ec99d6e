"""TorchRec's flat exchange, on the ranks that ours has."""

from __future__ import annotations

import fbgemm_gpu  # noqa: F401  (registers the operators; torchrec alone fails later, and says less)
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.comm_ops import alltoall_pooled

from bench.registry import Run


def one_stage(by_rank: Tensor, group: dist.ProcessGroup) -> Run:
    """The way home of a sharded collection's pooled rows: ``[W, B, D]`` of all samples, ``[B, W * D]`` of the own."""
    world, samples, width = by_rank.shape
    pooled = by_rank.view(world * samples, width)

    @torch.no_grad()
    def run() -> Tensor:
        return alltoall_pooled(pooled, [samples] * world, [width] * world, group=group).wait()

    return run
