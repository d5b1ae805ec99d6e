"""Arguments that every op over bags of ids takes: their names in the ops' integers, and the shapes they give."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.ops.check_ids import check_ids
from dmt_kernels.spec import InputError

Ints = Sequence[int] | None

_POOLINGS = {"sum": 0, "mean": 1}
_BOUNDS = {"error": 0, "warn": 1, "none": 2}


def pooling_codes(pooling: str | Sequence[str], num_features: int) -> list[int] | None:
    """Return the ops' `poolings` for "sum", "mean" or a sequence of them, one per feature. None: all sums."""
    if pooling == "sum":
        return None
    for name in [pooling] if isinstance(pooling, str) else pooling:
        if name not in _POOLINGS:
            raise InputError(f"pooling is 'sum' or 'mean', not {name!r}")
    names = [pooling] * num_features if isinstance(pooling, str) else pooling
    return [_POOLINGS[name] for name in names]


def bounds_code(bounds: str) -> int:
    """Return the ops' `bounds` for its name; an unknown one is an `InputError`."""
    if bounds not in _BOUNDS:
        raise InputError(f"bounds is 'error', 'warn' or 'none', not {bounds!r}")
    return _BOUNDS[bounds]


def warn_about_missing_ids(
    tables: Sequence[Tensor], ids: Tensor, offsets: Tensor, feature_tables: Ints, row_starts: Ints, block_order: Ints
) -> None:
    """Warn with the number of ids that are out of range, unless the call is being compiled."""
    if torch.compiler.is_compiling():
        return
    # A shard cannot know the whole table's rows: only negative ids are out of range there.
    rows = [table.size(0) if row_starts is None else torch.iinfo(torch.int64).max for table in tables]
    feature_rows = [rows[table] for table in (range(len(tables)) if feature_tables is None else feature_tables)]
    missing = check_ids(ids, offsets, feature_rows, num_blocks=1 if block_order is None else len(block_order))
    if missing.count:
        warnings.warn(f"{missing.count} of {ids.numel()} ids are out of range and count as missing", stacklevel=3)


def pooled_shape(tables: Sequence[Tensor], offsets: Tensor, feature_tables: Ints) -> tuple[int, int]:
    """Return ``(K*B, D)``, the shape of the pooled matrix."""
    features = range(len(tables)) if feature_tables is None else feature_tables
    rows = (offsets.size(0) - 1) // len(features) if features else 0  # K*F*B bags
    return rows, sum(tables[table].size(1) for table in features)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums over `dtype` are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@functools.cache
def on_device(numbers: tuple[int, ...] | tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Numbers on the device, for good: a step asks for the same ones every time, a captured step may not copy, and its
    graph reads them whenever it is replayed. So they are constants of a model, and no addresses.
    """
    with torch.inference_mode(False):  # autograd could not save what is made there
        return torch.tensor(numbers, dtype=torch.int64, device=device)
