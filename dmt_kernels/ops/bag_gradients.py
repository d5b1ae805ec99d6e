"""Gradients of pooled bags in the tables and in the per-sample weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmt_kernels.ops._direct import differentiable_once
from dmt_kernels.ops.bag_arguments import Ints, accumulator_dtype


class BagGradients:
    """What the backward of a pooled lookup has to remember, and the two gradients.

    Sizes suffice for the gradients of tables. Keeping the tables themselves would refuse an update in place before the
    backward.
    """

    def __init__(
        self,
        tables: Sequence[Tensor],
        feature_tables: Ints,
        poolings: Ints,
        row_starts: Ints,
        block_order: Ints,
        sparse: bool,
    ) -> None:
        self.shapes = [table.shape for table in tables]
        self.dtype = tables[0].dtype if tables else torch.float32
        self.layout = (feature_tables, poolings, row_starts, block_order)
        self.sparse = sparse

    @property
    def rows(self) -> list[int]:
        """E of each table."""
        return [shape[0] for shape in self.shapes]

    @property
    def dims(self) -> list[int]:
        """D of each table."""
        return [shape[1] for shape in self.shapes]

    def of_tables(self, grad: Tensor, ids: Tensor, offsets: Tensor, weights: Tensor | None) -> list[Tensor]:
        """Return the gradient of every table. grad: [K*B, D]."""
        if self.sparse:
            return self._sparse(grad, ids, offsets, weights)
        return torch.ops.dmt.embedding_bag_backward(
            grad, ids, offsets, weights, self.rows, self.dims, self.dtype, *self.layout
        )

    def of_weights(
        self, grad: Tensor, tables: Sequence[Tensor], ids: Tensor, offsets: Tensor, weights: Tensor
    ) -> Tensor:
        """Return the gradient [N] of the per-sample weights. grad: [K*B, D]."""
        weight_grad = torch.ops.dmt.embedding_bag_weights_backward(grad, list(tables), ids, offsets, *self.layout)
        return weight_grad.to(weights.dtype)

    def _sparse(self, grad: Tensor, ids: Tensor, offsets: Tensor, weights: Tensor | None) -> list[Tensor]:
        """One entry per id that has a row here. Letters as in :func:`dmt_kernels.embedding_bag`."""
        feature_tables, poolings, row_starts, block_order = self.layout
        rows, dims = self.rows, self.dims
        accumulator = accumulator_dtype(self.dtype)
        features = list(range(len(rows))) if feature_tables is None else list(feature_tables)
        order = torch.tensor([0] if block_order is None else block_order, device=ids.device)
        starts = torch.tensor([0] * len(rows) if row_starts is None else row_starts, device=ids.device)
        samples = (offsets.numel() - 1) // max(1, len(order) * len(features))  # B

        # Of every bag: its row of grad [K*F*B].
        bags = torch.arange(offsets.numel() - 1, device=ids.device)
        grad_row = order[bags // max(1, samples * len(features))] * samples + bags % max(1, samples)
        is_mean = torch.tensor([0] * len(features) if poolings is None else poolings, device=ids.device).bool()

        # Of every id in a bag: the bag, its feature, the row, and the factor of the bag's gradient.
        bag = torch.repeat_interleave(bags, offsets.diff())
        feature = bag // max(1, samples) % max(1, len(features))
        here = slice(int(offsets[0]), int(offsets[-1]))
        table = torch.tensor(features, dtype=torch.int64, device=ids.device)[feature]
        row = ids[here].long() - starts[table]
        is_row = (row >= 0) & (row < torch.tensor(rows, dtype=torch.int64, device=ids.device)[table])
        scale = torch.ones_like(row, dtype=accumulator) if weights is None else weights[here].to(accumulator)
        counted = is_row if row_starts is None else ids[here] >= 0
        count = torch.zeros(len(bags), dtype=accumulator, device=ids.device).index_add_(0, bag, counted.to(accumulator))
        scale = torch.where(is_mean[feature], scale / count[bag], scale)

        found = is_row.nonzero().squeeze(1)
        found = found[feature[found].argsort(stable=True)]
        of_feature = found.split(torch.bincount(feature[found], minlength=len(features)).tolist())
        indices: list[list[Tensor]] = [[] for _ in rows]
        values: list[list[Tensor]] = [[] for _ in rows]
        column = 0
        for entries, t in zip(of_feature, features, strict=True):
            columns = grad[grad_row[bag[entries]], column : column + dims[t]].to(accumulator)
            indices[t].append(row[entries])
            values[t].append((scale[entries, None] * columns).to(self.dtype))
            column += dims[t]
        return [
            torch.sparse_coo_tensor(
                torch.cat([torch.zeros(0, dtype=torch.int64, device=ids.device), *indices[t]])[None],
                torch.cat([grad.new_zeros(0, dims[t], dtype=self.dtype), *values[t]]),
                (rows[t], dims[t]),
                check_invariants=False,
            )
            for t in range(len(rows))
        ]


def shaped_like_inputs(grads: Sequence[Any], needs_input_grad: Sequence[Any]) -> tuple[Any, ...]:
    """Give autograd as many gradients, in lists as empty, as the call had arguments.

    The dispatcher drops trailing arguments equal to their defaults, and autograd takes any empty list for one of
    tensors.
    """
    return tuple([] if needed == [] else grad for grad, needed in zip(grads, needs_input_grad, strict=False))


@torch.library.register_fake("dmt::embedding_bag_backward")
def _(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    table_rows: Sequence[int],
    table_dims: Sequence[int],
    dtype: torch.dtype,
    feature_tables: Ints = None,
    poolings: Ints = None,
    row_starts: Ints = None,
    block_order: Ints = None,
) -> list[Tensor]:
    return [grad.new_empty(shape, dtype=dtype) for shape in zip(table_rows, table_dims, strict=True)]


@torch.library.register_fake("dmt::embedding_bag_weights_backward")
def _(
    grad: Tensor,
    tables: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    feature_tables: Ints = None,
    poolings: Ints = None,
    row_starts: Ints = None,
    block_order: Ints = None,
) -> Tensor:
    return grad.new_empty(ids.shape, dtype=accumulator_dtype(tables[0].dtype))


differentiable_once("embedding_bag and tower_pool", "embedding_bag_backward", "embedding_bag_weights_backward")
