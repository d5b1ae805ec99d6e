"""Predictions of a split in the order of its rows, gathered from all ranks."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmt_kernels.comm import Mesh
from dmt_kernels.ops import raise_missing_ids
from dmt_kernels.ops.groups import naming_failures
from dmt_kernels.spec import Batch
from dmt_kernels.train.metrics import Scores, score
from dmt_kernels.train.step import predict_logits


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], mesh: Mesh | None, *, amp: bool = False) -> Scores:
    """Score a model on this rank's shares of a split's batches; all ranks call it together and get the same scores.

    With `amp` it multiplies as :class:`~dmt_kernels.train.step.TrainStep` does.

    Raises
    ------
    RuntimeError
        On CUDA: ids are out of range, of these batches or of those trained on before that no watch has asked for.
    """
    model.eval()
    shares = [
        torch.stack([predict_logits(model, batch, amp=amp).double(), batch.label.double(), batch.weight.double()])
        for batch in batches
    ]
    raise_missing_ids(next(model.parameters()).device)  # the scores wait for the device, too
    rows = in_global_order(torch.stack(shares) if shares else torch.empty(0, 3, 0, dtype=torch.float64), mesh)
    scores = None
    if rows is not None:
        logits, label, weight = rows.cpu()
        real = weight > 0
        scores = score(logits[real].numpy(), label[real].numpy())
    return everywhere(scores, mesh)


def in_global_order(shares: Tensor, mesh: Mesh | None) -> Tensor | None:
    """Put the ranks' shares of global batches side by side.

    Parameters
    ----------
    shares : Tensor
        ``[batches, columns, B]``; rank ``g`` holds rows ``g * B .. (g + 1) * B`` of every batch.
    mesh : Mesh or None
        The ranks; None for one process.

    Returns
    -------
    Tensor or None
        ``[columns, batches * W * B]`` on rank 0, None elsewhere.
    """
    every = [shares]
    if mesh is not None:
        shares = shares.to(mesh.device)
        every = [torch.empty_like(shares) for _ in range(mesh.topology.world)] if mesh.rank == 0 else []
        with naming_failures(mesh.dense.group_name, "gathered predictions"):
            dist.gather(shares, every or None, dst=0, group=mesh.dense)
    if not every:
        return None
    return torch.stack(every, dim=2).permute(1, 0, 2, 3).flatten(1)


def everywhere(value: Scores | None, mesh: Mesh | None) -> Scores:
    """Rank 0's value, on every rank."""
    if mesh is not None:
        box = [value]
        with naming_failures(mesh.dense.group_name, "shared the scores"):
            dist.broadcast_object_list(box, src=0, group=mesh.dense)
        value = box[0]
    assert value is not None
    return value
