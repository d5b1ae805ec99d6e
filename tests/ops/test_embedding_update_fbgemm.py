"""The fused update against FBGEMM's exact optimizers, for machines that have fbgemm_gpu."""

from __future__ import annotations

import pytest
import torch

from dmt_kernels.ops.embedding_update import embedding_update_

fbgemm_gpu = pytest.importorskip("fbgemm_gpu", reason="fbgemm_gpu is not installed (it is locked to a torch minor)")

from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType  # noqa: E402
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode  # noqa: E402
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (  # noqa: E402
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
    WeightDecayMode,
)

ROWS, DIMS, SAMPLES, STEPS = [37, 5, 101], [8, 16, 4], 23, 6
LR, EPS = 0.05, 1e-6
# FBGEMM's CPU kernels want a table's features side by side, and ignore the decay of a float32 table with one feature.
SOME_SHARED, ALL_SHARED = [0, 0, 1, 2], [0, 0, 1, 1, 2, 2]


def zipf_batch(
    feature_tables: list[int], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids with many duplicates, offsets with empty bags, and per-sample weights."""
    lengths = torch.randint(0, 6, (len(feature_tables) * SAMPLES,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    rows = torch.tensor([ROWS[t] for t in feature_tables]).repeat_interleave(SAMPLES).repeat_interleave(lengths)
    uniform = torch.rand(int(offsets[-1]), generator=generator)
    ids = (rows.float().pow(uniform) - 1).long()  # density ~ 1 / (id + 1)
    return ids, offsets, torch.rand(len(ids), generator=generator)


# FBGEMM's CPU backward of a weighted mean leaves out the division that its forward makes: no peer for that one.
@pytest.mark.parametrize(
    ("pooling", "weighted"), [("sum", False), ("sum", True), ("mean", False)], ids=["sum", "sum-weighted", "mean"]
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("optimizer", "weight_decay"),
    [("sgd", 0.0), ("adagrad", 0.0), ("rowwise_adagrad", 0.0), ("rowwise_adagrad", 0.1)],
    ids=["sgd", "adagrad", "rowwise", "rowwise-decay"],
)
def test_steps_equal_fbgemm(optimizer: str, weight_decay: float, precision: str, pooling: str, weighted: bool) -> None:
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    feature_tables = ALL_SHARED if weight_decay else SOME_SHARED
    generator = torch.Generator().manual_seed(7)
    tables = [torch.randn(rows, dim, generator=generator).to(dtype) for rows, dim in zip(ROWS, DIMS, strict=True)]
    states = {
        "sgd": [],
        "adagrad": [torch.zeros(table.shape) for table in tables],
        "rowwise_adagrad": [torch.zeros(len(table)) for table in tables],
    }[optimizer]
    peer = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows, dim in zip(ROWS, DIMS, strict=True)],
        feature_table_map=feature_tables,
        weights_precision=SparseType.from_dtype(dtype),
        output_dtype=SparseType.FP32,
        optimizer=EmbOptimType[f"EXACT_{optimizer.upper()}"],
        learning_rate=LR,
        eps=EPS,
        weight_decay=weight_decay,
        weight_decay_mode=WeightDecayMode.L2 if weight_decay else WeightDecayMode.NONE,
        pooling_mode=PoolingMode[pooling.upper()],
        stochastic_rounding=False,
    )
    for mine, theirs in zip(tables, peer.split_embedding_weights(), strict=True):
        theirs.copy_(mine)

    for _ in range(STEPS):
        ids, offsets, weights = zipf_batch(feature_tables, generator)
        per_sample_weights = weights if weighted else None
        pooled = peer(ids, offsets, per_sample_weights)
        layout = {"feature_tables": feature_tables, "pooling": pooling, "per_sample_weights": per_sample_weights}
        grad = torch.randn(pooled.shape, generator=generator)
        pooled.backward(grad)
        embedding_update_(
            tables, states, grad, ids, offsets, optimizer=optimizer, lr=LR, eps=EPS, weight_decay=weight_decay, **layout
        )

    # A float16 weight that lies on a rounding boundary may end one step of the format away, each time it is stored.
    tolerance = {"rtol": 2e-6, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-3}
    for mine, theirs in zip(tables, peer.split_embedding_weights(), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)
    for mine, (theirs, *_) in zip(states, peer.split_optimizer_states(), strict=False):
        torch.testing.assert_close(mine, theirs.view_as(mine), **tolerance)
