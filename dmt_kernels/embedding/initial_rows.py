"""First values of a table: a function of (seed, table name, row, column), whatever the layout."""

import torch
from torch import Tensor

from dmt_kernels.spec import Shard, Table, derive_seed

_CHUNK_ROWS = 1 << 16


def initial_rows(shard: Shard, seed: int, scale: float | None, dtype: torch.dtype) -> Tensor:
    """Uniform in ``[-scale, scale)``.

    Parameters
    ----------
    shard : Shard
        Which rows and columns of which table.
    seed : int
        The run's seed.
    scale : float or None
        None means ``1 / sqrt(E)``, as DLRM does.
    dtype : dtype
        Of the result; values are drawn in float32, so that every dtype starts from the same ones.

    Returns
    -------
    Tensor
        ``[shard.rows, shard.dim]``. Only chunks of the table that the shard touches are ever made.
    """
    bound = shard.table.rows**-0.5 if scale is None else scale
    rows = torch.empty(shard.rows, shard.dim, dtype=dtype)
    for chunk in range(shard.row_start // _CHUNK_ROWS, -(-shard.row_stop // _CHUNK_ROWS)):
        first = chunk * _CHUNK_ROWS
        start, stop = max(shard.row_start, first), min(shard.row_stop, first + _CHUNK_ROWS)
        values = _chunk(shard.table, seed, chunk)[start - first : stop - first, shard.col_start : shard.col_stop]
        rows[start - shard.row_start : stop - shard.row_start] = (values * 2 - 1) * bound
    return rows


def _chunk(table: Table, seed: int, chunk: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "table", table.name, chunk))
    return torch.rand(min(_CHUNK_ROWS, table.rows - chunk * _CHUNK_ROWS), table.dim, generator=generator)
