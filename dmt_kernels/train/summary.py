"""The figures of a finished run."""

import time

import torch
import torch.distributed as dist
from torch import nn

from dmt_kernels.comm import Mesh, traffic
from dmt_kernels.ops.groups import naming_failures
from dmt_kernels.spec import Plan
from dmt_kernels.train.data import Loader
from dmt_kernels.train.step import over_arch_parameters, slice_parameters, tower_parameters

LOADER_SECONDS = 1.0  # how long the loader alone is timed, at most


def count_parameters(model: nn.Module, mesh: Mesh | None) -> int:
    """Dense parameters of the whole model: the over-arch once, and every tower's module once."""
    own = sum(p.numel() for p in tower_parameters(model).values())
    if mesh is not None:
        own = own if mesh.member_index == 0 else 0
        own = sum_over_ranks([own + sum(p.numel() for p in slice_parameters(model).values())], mesh)[0]
    return own + sum(p.numel() for p in over_arch_parameters(model).values())


def traffic_per_step(sent: dict[tuple[str, str], int], steps: int, mesh: Mesh | None) -> dict[str, float]:
    """Bytes that crossed the wires per training step, summed over ranks.

    Parameters
    ----------
    sent : dict
        What this rank sent in all training steps, by (stage, link), as the exchange counted it.
    steps : int
        How many steps.
    mesh : Mesh or None
        The ranks; None for one process.

    Returns
    -------
    dict
        ``tower_bytes_per_step`` and ``peer_bytes_per_step``: embeddings and their gradients inside and
        between towers, whatever the road; ``id_bytes_per_step`` and ``dense_bytes_per_step``: ids, and dense
        gradients, over either link.
    """
    wires = {key: size for key, size in sent.items() if key[1] != "self"}
    own = [
        traffic.payload_bytes(sent, "tower"),
        traffic.payload_bytes(sent, "peer"),
        sum(size for (stage, _), size in wires.items() if stage == "ids"),
        sum(size for (stage, _), size in wires.items() if stage in ("dense", "tower_dense")),
    ]
    total = own if mesh is None else sum_over_ranks(own, mesh)
    names = ("tower_bytes_per_step", "peer_bytes_per_step", "id_bytes_per_step", "dense_bytes_per_step")
    return {name: size / max(steps, 1) for name, size in zip(names, total, strict=True)}


def sum_over_ranks(values: list[int], mesh: Mesh) -> list[int]:
    """Sum integers over all ranks."""
    total = torch.tensor(values, dtype=torch.int64, device=mesh.device)
    with naming_failures(mesh.dense.group_name, "summed figures"):
        dist.all_reduce(total, group=mesh.dense)
    return total.tolist()


def embedding_parameters(plan: Plan) -> int:
    """Parameters of all tables, replicas counted once."""
    return sum(table.rows * table.dim for table in plan.tables)


def loader_samples_per_s(loader: Loader, mesh: Mesh | None) -> float:
    """Real samples per second that all ranks' loaders make when nothing else runs."""
    made, began = 0.0, time.perf_counter()
    for batch in loader:
        made += float(batch.weight.sum())
        if time.perf_counter() - began > LOADER_SECONDS:
            break
    rate = made / (time.perf_counter() - began)
    return rate if mesh is None else float(sum_over_ranks([round(rate)], mesh)[0])
