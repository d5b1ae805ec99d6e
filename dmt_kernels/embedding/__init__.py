"""Layer 3: from ids to embeddings, over one of three roads that compute the same."""

from collections.abc import Mapping
from typing import Any

import torch

from dmt_kernels.comm import Mesh, check_agreement, digest_of
from dmt_kernels.embedding.chunk_choice import Chunks
from dmt_kernels.embedding.description import describe
from dmt_kernels.embedding.exchange import EmbeddingExchange
from dmt_kernels.embedding.local_exchange import LocalExchange
from dmt_kernels.embedding.placement import PLACEMENTS
from dmt_kernels.embedding.wired_exchange import FlatExchange, SpttExchange
from dmt_kernels.spec import InputError, Jagged, Payloads, Plan, TableOptimizer
from dmt_kernels.towers import TowerModule

__all__ = ["EmbeddingExchange", "FlatExchange", "LocalExchange", "SpttExchange", "build_exchange"]


def build_exchange(
    kind: str,
    plan: Plan,
    *,
    optimizer: TableOptimizer,
    seed: int,
    mesh: Mesh | None = None,
    tower_modules: Mapping[int, TowerModule] | None = None,
    bounds: str = "error",
    dtype: torch.dtype = torch.float32,
    init_scale: float | None = None,
    chunks: Chunks = 1,
    payloads: Payloads | None = None,
    placement: str = "member",
    trial: Jagged | None = None,
) -> EmbeddingExchange:
    """Build the exchange of one process.

    Parameters
    ----------
    kind : {"flat", "sptt"}
        One all-to-all over all ranks, or tower stage, tower module and peer stage.
    plan : Plan
        Layout of tables, towers and shards.
    optimizer : TableOptimizer
        Updates the tables in the backward pass.
    seed : int
        Of the tables' initial values, together with their names.
    mesh : Mesh, optional
        This rank's groups. None holds all towers in this process; both kinds are then the same.
    tower_modules : mapping of int to TowerModule, optional
        One for every tower, on every rank (a rank keeps its own tower's); None passes through.
    bounds : {"error", "warn", "none"}
        What becomes of ids outside their table. Without a mesh, on CUDA, ``error`` raises only where
        :func:`~dmt_kernels.ops.raise_missing_ids` is called, as ``TrainStep`` does in its way.
    dtype : dtype
        Of tables and embeddings.
    init_scale : float, optional
        Tables start uniform in ``[-init_scale, init_scale)``; None means ``1 / sqrt(E)``.
    chunks : int or "auto"
        Pieces that a rank's batch is cut into, so that lookup, stages and tower module overlap; where its samples are
        no multiple of it, the largest number below that divides them. "auto" tries several numbers in the first steps
        of training (:class:`~dmt_kernels.embedding.chunk_choice.ChunkChoice`).
    payloads : Payloads, optional
        What rows travel as; by default as they are. In one process rows are rounded as between towers (``peer``), and
        nothing else is.
    placement : {"member", "owner", "auto"}
        Where linear tower modules stand, with the same result to rounding: whole at the members, who get what the tower
        looks up for their samples; or in slices at the owners of tables, who send partial sums. ``auto`` tries both on
        the ranks of the mesh and takes the quicker one, and ``member`` where there is no choice. In one process it
        makes no difference.
    trial : Jagged, optional
        For ``auto``: this rank's bags of a batch, like those to come.

    Returns
    -------
    EmbeddingExchange
        Maps a :class:`~dmt_kernels.spec.Jagged` to ``[B, sum(C_t)]``.

    Raises
    ------
    InputError
        For an unknown kind or placement, tower modules in a flat exchange, a mesh that does not fit the plan, modules
        or tables that cannot be placed so, or, on all ranks, if a rank was given something else than rank 0; on all
        of a tower, if one's tower module has other values.
    ExchangeError
        If a rank does not come within the mesh's timeout.
    """
    if kind not in ("flat", "sptt"):
        raise InputError(f"exchange {kind!r} is unknown; choose one of flat, sptt")
    if kind == "flat" and tower_modules is not None:
        raise InputError("a flat exchange has no towers to put tower modules in; use exchange 'sptt'")
    if placement not in PLACEMENTS:
        raise InputError(f"placement {placement!r} is unknown; choose one of {', '.join(PLACEMENTS)}")
    if kind == "flat" and placement != "member":
        raise InputError(f"placement {placement!r} is of tower modules, which a flat exchange does not have")
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "seed": seed,
        "bounds": bounds,
        "dtype": dtype,
        "init_scale": init_scale,
    }
    if mesh is None:
        return LocalExchange(plan, tower_modules, payloads=payloads if kind == "sptt" else None, **options)
    payloads = payloads or Payloads()
    bags = None if trial is None else trial.offsets.numel() - 1
    told = {"placement": placement, "bags to try it with": bags, "chunks": chunks, **options}
    check_agreement(describe(kind, plan, tower_modules, payloads, **told), mesh.dense, mesh.device)
    if tower_modules is not None and mesh.tower_index in tower_modules:
        values = digest_of(tower_modules[mesh.tower_index].state_dict())
        check_agreement([(f"values of tower module {mesh.tower_index}", values)], mesh.tower, mesh.device)
    options |= {"mesh": mesh, "chunks": chunks, "payloads": payloads}
    if kind == "flat":
        return FlatExchange(plan, tower_modules, **options)
    return SpttExchange(plan, tower_modules, placement=placement, trial=trial, **options)
