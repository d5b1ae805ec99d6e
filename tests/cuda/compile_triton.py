"""Compiles the Triton twins to cubins for sm_90, without a GPU. Called by test_triton.py."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dmt_kernels.ops.triton import bags, embedding_bag, embedding_update, tower_pool, tower_pool_gradients, wire_codec

TYPES = {
    "features": "*i64", "like": "*bf16", "ids": "*i64", "offsets": "*i64", "weights": "*fp32", "order": "*i64",
    "record": "*i64", "out": "*bf16", "num_ids": "i32", "num_features": "i32", "samples": "i32", "width": "i32",
    "num_blocks": "i32", "num_bags": "i32", "num_rows": "i64", "count": "i32", "counts": "*fp32",
    "matrix": "*bf16", "bias": "*bf16", "out_width": "i32", "slices": "*i64", "tiles_of_piece": "i32",
    "weight": "*bf16", "weight_stride": "i32", "weight_step": "i32", "grad": "*fp32",
    "keys": "*i64", "places": "*i64", "scales": "*fp32", "partials": "*fp32", "refused": "*i32", "levels": "i32",
    "sample_bits": "i32", "feature_bits": "i32", "lr": "fp32", "eps": "fp32", "weight_decay": "fp32",
    "step": "*i64", "ranks": "*i64", "statistic": "*fp64", "statistic_size": "i32",
    "key": "i64", "first_row": "i64", "row_bytes": "i32", "message_stride": "i32", "values": "*fp16",
    "message": "*u8", "stride": "i32", "dim": "i32", "payload_bytes": "i32",
}  # fmt: skip
MODES = {"IS_SHARD": True, "WEIGHTED": True}
TILE = {"ROUNDED": True, "INTERPRETED": False, "SAMPLES": 32, "OUT_COLUMNS": 64, "DEPTH": 32}
ROWS = {"SCALED": True, "COLUMNS": 128, "RUN": 128}
ONES = dict.fromkeys(
    ["num_features", "samples", "num_blocks", "num_bags", "sample_bits", "feature_bits"], 1
)  # constants
FP8 = {"FORMAT": 3, "BYTES": 1, "COLUMNS": 128}


def compile_kernel(kernel, constants: dict[str, object], **types: str | tuple[str, ...]) -> None:
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else (TYPES | types)[name] for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    print(f"{kernel.fn.__name__}: cubin of {len(compiled.asm['cubin'])} bytes")


for ones in ({}, ONES):
    compile_kernel(embedding_bag.pool_kernel, MODES | ones | {"RECORDS": True, "COLUMNS": 128})
    compile_kernel(embedding_bag.weights_kernel, ones | {"IS_SHARD": True, "COLUMNS": 128}, out="*fp32")
    compile_kernel(tower_pool.tower_kernel, MODES | TILE | ones | {"RECORDS": True, "BIASED": True})
    compile_kernel(tower_pool_gradients.weight_kernel, MODES | TILE | ones, out="*fp32")
    compile_kernel(embedding_update.count_kernel, ones | {"IS_SHARD": True, "POSITIONS": 32})
    compile_kernel(embedding_update.key_kernel, MODES | ones | {"SCALED": True, "RECORDS": True, "POSITIONS": 256})
    compile_kernel(embedding_update.run_kernel, ROWS | ones)
    for optimizer in range(4):
        constants = ROWS | ones | {"OPTIMIZER": optimizer, "DECAYS": True, "STRETCH": 16}
        compile_kernel(embedding_update.update_kernel, constants)
unused = {"DECAYS": False, "SCALED": False, "scales": None, "step": None, "ranks": None, "statistic": None}
compile_kernel(embedding_update.update_kernel, constants | unused | {"OPTIMIZER": 2})
compile_kernel(embedding_update.update_kernel, constants | {"OPTIMIZER": 0}, like="*fp16")
compile_kernel(bags.address_kernel, {"states": ()}, tables=("*bf16",) * 3, first="i32")
compile_kernel(bags.address_kernel, {}, tables=("*bf16",) * 3, states=("*fp32",) * 3, first="i32")
compile_kernel(tower_pool_gradients.pooled_kernel, TILE, out="*fp32")
compile_kernel(wire_codec.encode_kernel, FP8 | {"RANDOM": True})
compile_kernel(wire_codec.decode_kernel, FP8)
