"""Dense gradients: one flat buffer, one all-reduce."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_kernels.ops import traffic


def all_reduce_flat(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Sum tensors over a group, in place, through one flat buffer.

    Parameters
    ----------
    tensors : sequence of Tensor
        The same shapes and order on every rank; one dtype. The order fixes which bits the sum has.
    group : ProcessGroup
        Over whom.
    """
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    traffic.count_all_reduce(group.group_name, flat.numel() * flat.element_size())
    dist.all_reduce(flat, group=group)
    for tensor, reduced in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(reduced.view_as(tensor))
