"""Where ids are out of range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MissingIds:
    """How many ids are out of range and where the first one is (-1 everywhere when there is none)."""

    count: int
    block: int
    feature: int
    sample: int
    position: int


def check_ids(ids: Tensor, offsets: Tensor, rows: Sequence[int], *, num_blocks: int = 1) -> MissingIds:
    """Count the ids that are no row of their feature's table.

    Parameters
    ----------
    ids : Tensor [N], int32 or int64
    offsets : Tensor [K*F*B + 1], int64
        Bags in the order (block, feature, sample), as for :func:`embedding_bag`.
    rows : sequence of F ints
        For each feature, the rows of its table: an id is fine when it lies in ``[0, rows[f])``.
    num_blocks : int
        K.

    Returns
    -------
    MissingIds
        The count, and block, feature, sample and position in the bag of the first one in the order of the bags.

    Raises
    ------
    RuntimeError
        Offsets that decrease or point outside of `ids` (on CUDA they are clamped); shapes and dtypes that do not fit.
    """
    return MissingIds(*torch.ops.dmt.check_ids(ids, offsets, list(rows), num_blocks).tolist())


def raise_missing_ids(device: torch.device | str) -> None:
    """Raise if ops with ``bounds="error"`` met ids out of range on a CUDA device since the last call.

    They do not wait for the device, so they cannot raise themselves: such ids count as missing there, an
    :func:`embedding_update_` that meets one writes nothing, and a step that ends with this call ends with the error. It
    waits for the device's current stream.

    Raises
    ------
    RuntimeError
        Names one of the ids, its table, feature, sample and block.
    """
    record = torch.ops.dmt.take_missing_ids(torch.empty(0, dtype=torch.int64, device=device)).tolist()
    count, missing, table, feature, sample, block = record
    if count:
        where = f"id {missing} of table {table}, feature {feature}, sample {sample}, block {block}"
        raise RuntimeError(f"{where} is out of range; ops on {device} met {count} such ids")


@torch.library.register_fake("dmt::take_missing_ids")
def _(like: Tensor) -> Tensor:
    return like.new_empty(6, dtype=torch.int64)


@torch.library.register_fake("dmt::check_ids")
def _(ids: Tensor, offsets: Tensor, rows: Sequence[int], num_blocks: int = 1) -> Tensor:
    return ids.new_empty(5, dtype=torch.int64)
