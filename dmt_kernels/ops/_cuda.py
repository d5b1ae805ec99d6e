"""What runs on CUDA where there is no compiled library: the one place that chooses."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dmt_kernels.ops._composition import implement_on
from dmt_kernels.ops._library import cuda_kernels

_CODEC = ("wire_encode", "wire_decode", "wire_encode_blocks_", "wire_decode_blocks_")


def _implement(module: ModuleType, *names: str) -> None:
    for name in names:
        implement_on("CUDA", name, _on_its_device(getattr(module, name)))


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Launch where the tensors lie, which need not be the current device."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        lists = (given if isinstance(given, list | tuple) else [given] for given in arguments)
        like = next(one for given in lists for one in given if isinstance(one, Tensor) and one.is_cuda)
        with torch.cuda.device(like.device):
            return function(*arguments, **options)

    return run


if cuda_kernels != "compiled":
    from dmt_kernels.ops.reference import check_ids

    _implement(check_ids, "check_ids")
if cuda_kernels == "triton":
    from dmt_kernels.ops.triton import (
        bags,
        embedding_bag,
        embedding_update,
        tower_pool,
        tower_pool_gradients,
        wire_codec,
    )

    _implement(bags, "take_missing_ids")
    _implement(embedding_bag, "embedding_bag", "embedding_bag_", "embedding_bag_weights_backward")
    _implement(embedding_update, "embedding_update_", "embedding_row_squares", "embedding_bag_backward")
    _implement(tower_pool, "tower_pool")
    _implement(tower_pool_gradients, "tower_pool_weight_backward", "tower_pool_pooled_backward")
    _implement(wire_codec, *_CODEC)
elif cuda_kernels == "none":
    from dmt_kernels.ops.reference import wire_codec as reference

    _implement(reference, *_CODEC)  # slowly, above all with stochastic rounding
