"""Where ranks run: on the CPU with gloo, and with NCCL where there is a GPU, if need be several ranks on one."""

import pytest
import torch
import torch.distributed as dist


def _refusal() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU"
    return None if dist.is_nccl_available() else "this torch has no NCCL"


_REFUSAL = _refusal()
on_cuda = [pytest.mark.cuda, pytest.mark.skipif(_REFUSAL is not None, reason=str(_REFUSAL))]
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])
