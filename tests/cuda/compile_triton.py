"""Compiles the Triton twins to cubins for sm_90, without a GPU. Called by test_triton.py."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dmt_kernels.ops.triton import embedding_bag, tower_pool, wire_codec

BAGS = {
    "features": "*i64", "like": "*bf16", "ids": "*i64", "offsets": "*i64", "weights": "*fp32", "order": "*i64",
    "out": "*bf16", "num_features": "i32", "samples": "i32", "width": "i32",
}  # fmt: skip
MODES = {"IS_SHARD": True, "WEIGHTED": True}
TOWER = {"matrix": "*bf16", "bias": "*bf16", "out_width": "i32"}
TILE = {"BIASED": True, "ROUNDED": True, "INTERPRETED": False, "SAMPLES": 32, "OUT_COLUMNS": 64, "DEPTH": 32}
ENCODE = {"key": "i64", "first_row": "i64", "row_bytes": "i32"}
DECODE = {"message_stride": "i32"}
ROWS = {"values": "*fp16", "message": "*u8", "stride": "i32", "dim": "i32", "payload_bytes": "i32"}
FP8 = {"FORMAT": 3, "BYTES": 1, "COLUMNS": 128}


def compile_kernel(kernel, types: dict[str, str], constants: dict[str, object]) -> None:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print(f"{kernel.fn.__name__}: cubin of {len(compiled.asm['cubin'])} bytes")


compile_kernel(embedding_bag.pool_kernel, BAGS, MODES | {"COLUMNS": 128})
compile_kernel(tower_pool.tower_kernel, BAGS | TOWER, MODES | TILE)
compile_kernel(wire_codec.encode_kernel, ROWS | ENCODE, FP8 | {"RANDOM": True})
compile_kernel(wire_codec.decode_kernel, ROWS | DECODE, FP8)
