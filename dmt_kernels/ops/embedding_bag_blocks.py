"""Pooled lookup into the messages that carry its rows: ``torch.ops.dmt.embedding_bag_blocks_``, documented."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.ops._composition import implement_on
from dmt_kernels.ops._direct import mutating
from dmt_kernels.ops._library import cuda_kernels
from dmt_kernels.ops.bag_arguments import Ints, bounds_code, pooling_codes, warn_about_missing_ids
from dmt_kernels.ops.reference import embedding_bag_blocks as reference
from dmt_kernels.spec import WireFormat


def embedding_bag_blocks_(
    blocks: Sequence[Tensor],
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    *,
    format: WireFormat | str = WireFormat.FP32,
    per_sample_weights: Tensor | None = None,
    feature_tables: Sequence[int] | None = None,
    pooling: str | Sequence[str] = "sum",
    row_starts: Sequence[int] | None = None,
    block_order: Sequence[int] | None = None,
    bounds: str = "error",
) -> None:
    """Do :func:`~dmt_kernels.ops.embedding_bag` into blocks of rows, some of them encoded, without gradients.

    The bytes are those of :func:`~dmt_kernels.ops.wire_encode`, rounded to nearest, of the pooled rows in the tables'
    dtype. A row is encoded as soon as its features are pooled, and is in memory as a message only.

    Parameters
    ----------
    blocks : sequence of M Tensors [K*B/M, D], or [K*B/M, format.row_bytes(D)] of uint8
        The rows of the output in order, M a divisor of K, in the tables' dtype or, where a block has bytes, as
        messages. Columns must be adjacent in memory; rows need not be. Overwritten.
    tables, ids, offsets, per_sample_weights, feature_tables, pooling, row_starts, block_order, bounds
        As in :func:`~dmt_kernels.ops.embedding_bag`; with ``bounds="error"`` ids are checked before anything is
        written.
    format : WireFormat or its name
        Of blocks of bytes.

    Raises
    ------
    RuntimeError
        Shapes, dtypes or offsets that do not fit; on the CPU an id out of range with ``bounds="error"``.
    InputError
        An unknown format.
    ValueError
        An unknown `pooling` or `bounds`.
    """
    if bounds == "warn":
        warn_about_missing_ids(tables, ids, offsets, feature_tables, row_starts, block_order)
    _call(
        list(blocks),
        list(tables),
        ids,
        offsets,
        per_sample_weights,
        feature_tables,
        pooling_codes(pooling, len(tables if feature_tables is None else feature_tables)),
        row_starts,
        block_order,
        bounds_code(bounds),
        WireFormat(format).code,
    )


@torch.library.register_fake("dmt::embedding_bag_blocks_")
def _(
    blocks: Sequence[Tensor],
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None = None,
    feature_tables: Ints = None,
    poolings: Ints = None,
    row_starts: Ints = None,
    block_order: Ints = None,
    bounds: int = 0,
    format: int = 0,
) -> None:
    return None


_call = mutating(torch.ops.dmt.embedding_bag_blocks_.default, 1)

if cuda_kernels != "compiled":  # two passes
    implement_on("CUDA", "embedding_bag_blocks_", reference.embedding_bag_blocks_)
