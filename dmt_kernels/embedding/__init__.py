"""Layer 3: from ids to embeddings, over one of three roads that compute the same."""

from collections.abc import Mapping
from typing import Any

import torch

from dmt_kernels.comm import Mesh, check_agreement
from dmt_kernels.embedding.chunk_choice import Chunks
from dmt_kernels.embedding.description import describe
from dmt_kernels.embedding.exchange import EmbeddingExchange
from dmt_kernels.embedding.local_exchange import LocalExchange
from dmt_kernels.embedding.wired_exchange import FlatExchange, SpttExchange
from dmt_kernels.spec import InputError, Payloads, Plan, TableOptimizer
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
        What becomes of ids outside their table.
    dtype : dtype
        Of tables and embeddings.
    init_scale : float, optional
        Tables start uniform in ``[-init_scale, init_scale)``; None means ``1 / sqrt(E)``.
    chunks : int or "auto"
        Pieces that a rank's batch is cut into, so that lookup, stages and tower module overlap; where its samples are
        no multiple of it, the largest number below that divides them. "auto" tries several numbers in the first steps
        of training (:class:`~dmt_kernels.embedding.chunk_choice.ChunkChoice`).
    payloads : Payloads, optional
        What rows travel as; by default as they are.

    Returns
    -------
    EmbeddingExchange
        Maps a :class:`~dmt_kernels.spec.Jagged` to ``[B, sum(C_t)]``.

    Raises
    ------
    InputError
        For an unknown kind, tower modules in a flat exchange, a mesh that does not fit the plan, or, on all ranks, if
        a rank was given something else than rank 0.
    ExchangeError
        If a rank does not come within the mesh's timeout.
    """
    roads = {"flat": FlatExchange, "sptt": SpttExchange}
    if kind not in roads:
        raise InputError(f"exchange {kind!r} is unknown; choose one of {', '.join(roads)}")
    if kind == "flat" and tower_modules is not None:
        raise InputError("a flat exchange has no towers to put tower modules in; use exchange 'sptt'")
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "seed": seed,
        "bounds": bounds,
        "dtype": dtype,
        "init_scale": init_scale,
    }
    if mesh is None:
        return LocalExchange(plan, tower_modules, **options)
    payloads = payloads or Payloads()
    facts = describe(kind, plan, tower_modules, payloads, chunks=chunks, **options)
    check_agreement(facts, mesh.dense, mesh.device)
    return roads[kind](plan, tower_modules, mesh=mesh, chunks=chunks, payloads=payloads, **options)
