"""FBGEMM's table-batched embedding on CPU, on the tables that ours reads, or on a copy in pages of the same kind."""

from __future__ import annotations

from typing import Any

import fbgemm_gpu  # noqa: F401  (registers the operators)
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.bags import Bags
from bench.memory import huge
from bench.timing import Run

_DTYPES = (torch.float32, torch.float16)  # of tables, on CPU
_SMALL = 1 << 16


def embedding_bag(bags: Bags) -> Run | None:
    if bags.spec.dtype not in _DTYPES:
        return None
    batched = table_batched(bags, bags.memory)
    offsets = bags.offsets.to(bags.ids.dtype)

    @torch.no_grad()
    def run() -> Tensor:
        return batched(bags.ids, offsets, bags.weights)

    return run


def tower_pool(bags: Bags, weight: Tensor, products: torch.dtype) -> Run | None:
    pooled = embedding_bag(bags)
    if pooled is None:
        return None
    return lambda: torch.mm(pooled().to(products), weight.to(products).t()).to(weight.dtype)


def embedding_update(bags: Bags, memory: Tensor, grad: Tensor, **optimizer: Any) -> Run | None:
    """The backward pass with the optimizer in it; `memory` holds the tables that it updates."""
    if bags.spec.dtype not in _DTYPES:
        return None
    pooled = table_batched(bags, memory, **optimizer)(bags.ids, bags.offsets.to(bags.ids.dtype), bags.weights)
    return lambda: torch.autograd.backward(pooled, grad, retain_graph=True)


def tower_pool_backward(
    bags: Bags, memory: Tensor, weight: Tensor, grad: Tensor, products: torch.dtype, **optimizer: Any
) -> Run | None:
    if bags.spec.dtype not in _DTYPES:
        return None
    parameter = weight.clone().requires_grad_()
    pooled = table_batched(bags, memory, **optimizer)(bags.ids, bags.offsets.to(bags.ids.dtype), bags.weights)
    out = torch.mm(pooled.to(products), parameter.to(products).t()).to(weight.dtype)

    def run() -> Tensor | None:
        parameter.grad = None
        # Of everything: torch.autograd.grad of the weight alone would leave out the tables, and so their update.
        torch.autograd.backward(out, grad, retain_graph=True)
        return parameter.grad

    return run


def empty_batch(tables: list[Tensor]) -> Run:
    batched = _module([tuple(table.shape) for table in tables], torch.float32, "sum")
    ids, offsets = torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    return lambda: batched(ids, offsets)


def empty_tower(tables: list[Tensor], weight: Tensor) -> Run:
    pooled = empty_batch(tables)
    return lambda: torch.mm(pooled(), weight.t())


def empty_update(tables: list[Tensor], grad: Tensor) -> Run:
    pooled = empty_batch(tables)()
    return lambda: torch.autograd.backward(pooled, grad, retain_graph=True)


def table_batched(bags: Bags, memory: Tensor, **optimizer: Any) -> SplitTableBatchedEmbeddingBagsCodegen:
    """A module whose weights are `memory`."""
    shape = bags.spec.shape
    batched = _module([(shape.rows, dim) for dim in shape.dims], memory.dtype, bags.options["pooling"], **optimizer)
    batched.weights_host.data = memory
    return batched


class _HugeZeros(TorchFunctionMode):
    """Gives the module's weights and optimizer states the pages that ours have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = None
        if func is torch.zeros and len(args) == 1 and isinstance(args[0], int) and args[0] > _SMALL:
            result = huge((args[0],), kwargs["dtype"])
        return func(*args, **(kwargs or {})) if result is None else result


def _module(
    sizes: list[tuple[int, ...]], dtype: torch.dtype, pooling: str, *, optimizer: str = "sgd", **settings: float
) -> SplitTableBatchedEmbeddingBagsCodegen:
    kind = SparseType.from_dtype(dtype)
    with _HugeZeros():
        return SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows, dim in sizes],
            weights_precision=kind,
            output_dtype=kind,
            optimizer=EmbOptimType[f"EXACT_{optimizer.upper()}"],
            pooling_mode=PoolingMode[pooling.upper()],
            stochastic_rounding=False,
            **({"learning_rate": settings["lr"], "eps": settings["eps"]} if settings else {}),
        )
