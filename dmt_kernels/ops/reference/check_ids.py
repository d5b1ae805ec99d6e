"""`check_ids` in plain PyTorch: what runs on a device without kernels of ours; the host does not wait."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.ops.bag_arguments import on_device


def check_ids(ids: Tensor, offsets: Tensor, rows: Sequence[int], num_blocks: int = 1) -> Tensor:
    """As ``torch.ops.dmt.check_ids``; offsets are clamped."""
    num_ids, num_bags = ids.numel(), offsets.numel() - 1
    if not num_ids or num_bags <= 0:
        return on_device((0, -1, -1, -1, -1), ids.device).clone()
    samples = num_bags // (num_blocks * len(rows))
    offsets = offsets.clamp(0, num_ids)
    positions = torch.arange(num_ids, device=ids.device)
    bags = torch.searchsorted(offsets, positions, right=True) - 1
    in_a_bag = (bags >= 0) & (bags < num_bags)
    bags = bags.clamp(0, num_bags - 1)
    groups = bags // samples
    features = groups % len(rows)
    missing = in_a_bag & ((ids < 0) | (ids >= on_device(tuple(rows), ids.device)[features]))
    first = missing.to(torch.int32).argmax()
    bag, feature = bags[first], features[first]
    place = torch.stack([groups[first] // len(rows), feature, bag % samples, first - offsets[bag]])
    count = missing.sum()
    return torch.cat([count[None], torch.where(count > 0, place, -1)])
