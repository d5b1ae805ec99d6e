"""Who else pools and updates on the GPU: plain PyTorch, and FBGEMM's CUDA kernels where they can be imported.

TorchRec's Triton kernels take no part: no release holds them, and their source imports a package that is not public
(``ads_mkl``). FBGEMM's wheel with CUDA kernels belongs to one minor version of torch and one of CUDA; put what
``pip install --no-deps --target build/peers fbgemm-gpu==1.6.0`` (of torch 2.11's index for CUDA 13) makes beside the
checkout, and ``gpu.sh`` finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu.device import Run
from dmt_kernels.ops._library import cuda_kernels


def torch_bags(
    tables: Sequence[Tensor],
    ids: Tensor,
    samples: int,
    length: int,
    out_dtype: torch.dtype | None = None,
    **options: Any,
) -> Tensor:
    """``nn.EmbeddingBag`` of every table, side by side; in another dtype, without a gradient, by the same pass."""
    bags = ids.view(len(tables), samples, length)
    pooled = [F.embedding_bag(bags[f], t, mode="sum", **options) for f, t in enumerate(tables)]
    if out_dtype in (None, tables[0].dtype):
        return torch.cat(pooled, dim=1)
    out = torch.empty(samples, sum(t.shape[1] for t in tables), dtype=out_dtype, device=ids.device)
    return torch.cat(pooled, dim=1, out=out)


def product(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """``a @ b`` of bfloat16, in another dtype without a pass of its own, which torch can do on CUDA."""
    if a.is_cuda and a.dtype != out_dtype:
        return torch.mm(a, b, out_dtype=out_dtype)
    return (a @ b).to(out_dtype)


def torch_update(tables: list[Tensor], grad: Tensor, ids: Tensor, samples: int, length: int) -> Run:
    """Sparse gradients of ``nn.EmbeddingBag`` and ``torch.optim.Adagrad``, which has a state for every element."""
    parameters = [torch.nn.Parameter(table) for table in tables]
    optimizer = torch.optim.Adagrad(parameters, lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        torch_bags(parameters, ids, samples, length, sparse=True).backward(grad)
        optimizer.step()

    return run


def why_no_fbgemm() -> str | None:
    """Why FBGEMM takes no part; None if it does."""
    if not torch.cuda.is_available():
        return "no GPU"
    try:
        import fbgemm_gpu  # noqa: F401  (registers the operators)
    except Exception as error:  # another torch's build fails in whatever way
        return f"fbgemm_gpu cannot be imported: {str(error).strip().splitlines()[0] if str(error) else type(error)}"
    name = "fbgemm::split_embedding_codegen_lookup_rowwise_adagrad_function"
    try:
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    except RuntimeError:
        has_kernel = False
    return None if has_kernel else "this fbgemm_gpu has no CUDA kernels"


def fbgemm(tables: list[Tensor], out_dtype: torch.dtype | None = None) -> Any:
    """A module of tables like these, with their values, that pools to their dtype or another one."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    kind = SparseType.from_dtype(tables[0].dtype)
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(*table.shape, EmbeddingLocation.DEVICE, ComputeDevice.CUDA) for table in tables],
        weights_precision=kind,
        cache_precision=SparseType.FP32,  # there is no cache, but it refuses some others
        output_dtype=kind if out_dtype is None else SparseType.from_dtype(out_dtype),
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        pooling_mode=PoolingMode.SUM,
        stochastic_rounding=False,
        learning_rate=0.01,
        device=tables[0].device,
    )
    for mine, theirs in zip(tables, module.split_embedding_weights(), strict=True):
        theirs.copy_(mine)
    return module


def fbgemm_bags(tables: list[Tensor], ids: Tensor, offsets: Tensor, out_dtype: torch.dtype | None = None) -> Run:
    module = fbgemm(tables, out_dtype)

    @torch.no_grad()
    def run() -> Tensor:
        return module(ids, offsets)

    return run


def fbgemm_update(tables: list[Tensor], grad: Tensor, ids: Tensor, offsets: Tensor) -> Run:
    pooled = fbgemm(tables)(ids, offsets)
    return lambda: pooled.backward(grad, retain_graph=True)


def triton_twin(name: str, *arguments: Any, **options: Any) -> dict[str, Callable[[], Run]]:
    """The same call on Triton's kernels, where it is the compiled ones that run."""
    if cuda_kernels != "compiled" or find_spec("triton") is None:
        return {}
    from dmt_kernels.ops.triton import embedding_bag, embedding_update, tower_pool

    twin = next(getattr(m, name) for m in (embedding_bag, embedding_update, tower_pool) if hasattr(m, name))
    return {"our Triton twin": lambda: lambda: twin(*arguments, bounds=2, **options)}
