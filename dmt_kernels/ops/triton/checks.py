"""Argument checks of the twins, in the words of csrc/ops: kernels that believed wrong ones would read elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_kernels.ops.bag_arguments import Ints, accumulator_dtype
from dmt_kernels.spec import WireFormat

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_OPTIMIZERS = 3  # the last of which has a state per row


def check(holds: bool, op: str, sentence: str) -> None:
    """Raise a RuntimeError unless it holds."""
    if not holds:
        raise RuntimeError(f"{op}: {sentence}")


def check_tables(op: str, tables: Sequence[Tensor]) -> None:
    """Tables [E_i, D_i] of one floating dtype, columns adjacent."""
    for i, table in enumerate(tables):
        name = f"tables[{i}]"
        check_dimensions(op, name, table)
        check(table.dtype in _FLOATS, op, f"{name} must be float64, float32, float16 or bfloat16, got {table.dtype}")
        check(table.dtype == tables[0].dtype, op, f"all tables must have one dtype, but {name} is {table.dtype}")
        check(table.dtype != torch.float64, op, "tables of float64 are for CPUs only")
        check(table.size(1) <= 1 or table.stride(1) == 1, op, f"the columns of {name} must be adjacent in memory")


def check_bags(
    op: str,
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    feature_tables: Ints,
    poolings: Ints,
    row_starts: Ints,
    block_order: Ints,
    bounds: int = 0,
) -> None:
    """Tables, and what every op over bags takes beside them."""
    check_tables(op, tables)
    check(bounds in (0, 1, 2), op, f"bounds must be 0 (error), 1 (warn) or 2 (none), got {bounds}")
    for name, tensor in (("offsets", offsets), ("per_sample_weights", weights), *_named("tables", tables)):
        check_here(op, name, tensor, ids)
    check(ids.dim() == 1 and ids.dtype in (torch.int32, torch.int64), op, "ids must be [N], int32 or int64")
    check(offsets.dim() == 1 and offsets.dtype == torch.int64, op, "offsets must be int64 and have 1 dimension")
    if weights is not None:
        fits = weights.is_floating_point() and weights.shape == ids.shape
        check(fits, op, f"per_sample_weights must be floating point, [{ids.numel()}], got {list(weights.shape)}")
    features = range(len(tables)) if feature_tables is None else feature_tables
    for f, table in enumerate(features):
        check(0 <= table < len(tables), op, f"feature_tables[{f}] is {table}, but there are {len(tables)} tables")
    if poolings is not None:
        check(len(poolings) == len(features), op, f"got {len(features)} features, but {len(poolings)} poolings")
        check(set(poolings) <= {0, 1}, op, "poolings must be 0 (sum) or 1 (mean)")
    if row_starts is not None:
        fits = len(row_starts) == len(tables) and min(row_starts, default=0) >= 0
        check(fits, op, f"got {len(tables)} tables, but row_starts {list(row_starts)}")
    order = [0] if block_order is None else block_order
    is_order = len(order) > 0 and sorted(order) == list(range(len(order)))
    check(is_order, op, f"block_order must be a permutation of 0..{len(order) - 1}, got {list(order)}")
    bags, groups = offsets.numel() - 1, len(order) * len(features)
    check(bags >= 0 and (bags % groups == 0 if groups else bags == 0), op, f"offsets need {groups}*B + 1 entries")


def check_here(op: str, name: str, tensor: Tensor | None, like: Tensor) -> None:
    """On the device of `like`."""
    if tensor is not None:
        check(tensor.device == like.device, op, f"{name} must be on {like.device}, as the other arguments are")


def check_matrix(op: str, name: str, matrix: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Floating, of that shape, on the device of `like`."""
    check_here(op, name, matrix, like)
    check(matrix.dtype in _FLOATS, op, f"{name} must be float64, float32, float16 or bfloat16, got {matrix.dtype}")
    check(list(matrix.shape) == list(shape), op, f"{name} must be {list(shape)}, got {list(matrix.shape)}")


def check_dimensions(op: str, name: str, matrix: Tensor) -> None:
    """Two of them."""
    check(matrix.dim() == 2, op, f"{name} must have 2 dimensions, got shape {list(matrix.shape)}")


def check_format(op: str, format: int) -> WireFormat:
    """Return the wire format of a code."""
    check(0 <= format < len(WireFormat), op, f"format must be 0 to {len(WireFormat) - 1}, got {format}")
    return WireFormat.from_code(format)


def check_update(
    op: str,
    tables: Sequence[Tensor],
    states: Sequence[Tensor],
    optimizer: int,
    row_mean_squares: Tensor | None,
    seeds: Ints,
    step: Tensor | None,
    column_starts: Ints,
    like: Tensor,
) -> None:
    """What an update takes beside bags and a gradient."""
    check(0 <= optimizer < _OPTIMIZERS, op, "optimizer must be 0 (sgd), 1 (adagrad) or 2 (rowwise_adagrad)")
    is_rowwise = optimizer == _OPTIMIZERS - 1
    expected = len(tables) if optimizer else 0
    check(len(states) == expected, op, f"expected {expected} states, got {len(states)}")
    for (name, state), table in zip(_named("states", states), tables, strict=False):
        check_matrix(op, name, state, table.shape[:1] if is_rowwise else table.shape, like)
        wanted = accumulator_dtype(table.dtype)
        check(state.dtype == wanted, op, f"{name} must be {wanted} for {table.dtype} tables, got {state.dtype}")
        is_adjacent = is_rowwise or state.size(1) <= 1 or state.stride(1) == 1
        check(is_adjacent, op, f"the columns of {name} must be adjacent in memory")
    if row_mean_squares is not None:
        check(is_rowwise, op, "row_mean_squares belongs to rowwise_adagrad only")
        fits = row_mean_squares.dtype == torch.float64 and row_mean_squares.dim() == 1
        check(fits, op, "row_mean_squares must be float64 and have 1 dimension")
        check_here(op, "row_mean_squares", row_mean_squares, like)
    check((seeds is None) == (step is None), op, "seeds and step belong together")
    for name, given in (("seeds", seeds), ("column_starts", column_starts)):
        fits = given is None or len(given) == len(tables)
        check(fits, op, f"expected {len(tables)} {name}")
    if step is not None:
        check(step.dtype == torch.int64 and step.dim() == 0, op, "step must be int64 and have no dimensions")
        check_here(op, "step", step, like)


def check_parameters(
    op: str, dtype: torch.dtype, width: int, weight: Tensor, bias: Tensor | None, like: Tensor
) -> None:
    """Weight [C, D] and bias [C] of a tower module, of the tables' dtype."""
    check_dimensions(op, "weight", weight)
    check_matrix(op, "weight", weight, [weight.size(0), width], like)
    check(weight.dtype == dtype, op, f"weight must be {dtype} as the tables are, got {weight.dtype}")
    if bias is not None:
        check_matrix(op, "bias", bias, weight.shape[:1], like)
        check(bias.dtype == dtype, op, f"bias must be {dtype} as the tables are, got {bias.dtype}")


def check_blocks(op: str, blocks: Sequence[Tensor], message: Tensor, wire: WireFormat) -> None:
    """Rows that a kernel reads or writes where they are, and a message of the size that they have in it."""
    size = 0
    for name, block in _named("blocks", blocks):
        check_dimensions(op, name, block)
        check_matrix(op, name, block, block.shape, message)
        check(block.size(1) <= 1 or block.stride(1) == 1, op, f"{name} must have adjacent columns")
        size += len(block) * wire.row_bytes(block.size(1))
    fits = message.dtype == torch.uint8 and list(message.shape) == [size] and message.is_contiguous()
    check(fits, op, f"message must be uint8, [{size}], adjacent in memory, got {list(message.shape)}")


def _named(list_name: str, tensors: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"{list_name}[{i}]", tensor) for i, tensor in enumerate(tensors)]
