"""What runs on CUDA where there is no compiled library: the one place that chooses."""

from types import ModuleType

from dmt_kernels.ops._composition import implement_on
from dmt_kernels.ops._library import cuda_kernels

_CODEC = ("wire_encode", "wire_decode", "wire_encode_blocks_", "wire_decode_blocks_")


def _implement(module: ModuleType, *names: str) -> None:
    for name in names:
        implement_on("CUDA", name, getattr(module, name))


if cuda_kernels == "triton":
    from dmt_kernels.ops.triton import embedding_bag, tower_pool, wire_codec

    _implement(embedding_bag, "embedding_bag", "embedding_bag_")
    _implement(tower_pool, "tower_pool")
    _implement(wire_codec, *_CODEC)
elif cuda_kernels == "none":
    from dmt_kernels.ops.reference import wire_codec as reference

    _implement(reference, *_CODEC)  # slowly, above all with stochastic rounding
