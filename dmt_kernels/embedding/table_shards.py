"""The shards that one process holds: looked up in the forward pass, updated in the backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmt_kernels import ops
from dmt_kernels.embedding.column_layout import Lookup
from dmt_kernels.embedding.initial_rows import initial_rows
from dmt_kernels.ops.bag_arguments import accumulator_dtype
from dmt_kernels.spec import InputError, Jagged, Shard, TableOptimizer, WireFormat, derive_seed

# Turns the shards' sums of squares, [touched rows] each, into one tensor of means over whole rows, shard after shard.
RowMeans = Callable[[list[Tensor]], Tensor]


class TableShards(nn.Module):
    """Embedding shards with their optimizer states.

    Weights and states are buffers, so that ``state_dict`` holds them, ``.to`` moves them and no dense optimizer
    sees them. Their names are the shards' keys, the same whichever process holds them. With 16-bit weights there is
    ``step``, too, the number of updates so far, by which they are rounded: a run that goes on draws the numbers that it
    would have drawn.

    Parameters
    ----------
    lookups : sequence of Lookup
        What is looked up, in the order of the pooled columns.
    optimizer : TableOptimizer
        How the backward pass updates the shards. Changing ``self.optimizer`` (a learning rate schedule, say) takes
        effect with the next backward pass.
    seed : int
        Seed of the initial values and of the numbers that weights are rounded by.
    dtype : dtype
        Of the tables; states are float32, or float64 for float64 tables.
    init_scale : float or None
        See :func:`~dmt_kernels.embedding.initial_rows.initial_rows`.
    row_means : callable or None
        Completes the row statistics of column splits; None where no table is split by columns.
    """

    step: Tensor | None

    def __init__(
        self,
        lookups: Sequence[Lookup],
        optimizer: TableOptimizer,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        init_scale: float | None = None,
        row_means: RowMeans | None = None,
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.dtype = dtype
        self._row_means = row_means if optimizer.kind == "rowwise_adagrad" else None
        self.shards: list[Shard] = list(dict.fromkeys(lookup.shard for lookup in lookups))
        self.width = sum(lookup.shard.dim for lookup in lookups)
        self.tables, self.states = nn.Module(), nn.Module()
        self._names = [_buffer_name(shard) for shard in self.shards]
        for name, shard in zip(self._names, self.shards, strict=True):
            table = initial_rows(shard, seed, init_scale, dtype)
            self.tables.register_buffer(name, table)
            if optimizer.kind != "sgd":
                shape = table.shape if optimizer.kind == "adagrad" else table.shape[:1]
                self.states.register_buffer(name, torch.zeros(shape, dtype=accumulator_dtype(dtype)))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64) if dtype.itemsize == 2 else None)
        self._seeds = [derive_seed(seed, "rounding", shard.table.name) for shard in self.shards]
        self._column_starts = [shard.col_start for shard in self.shards]
        table_of = {shard: i for i, shard in enumerate(self.shards)}
        self._feature_tables = [table_of[lookup.shard] for lookup in lookups]
        self._poolings = [lookup.shard.table.pooling for lookup in lookups]
        self._row_starts = [shard.row_start for shard in self.shards] if self.splits_rows else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if fn(torch.empty(0, dtype=self.dtype)).dtype is not self.dtype:
            raise InputError(f"tables stay {self.dtype}, as the exchange was built; convert the layers around it")
        before = dict(self.states.named_buffers())
        super()._apply(fn, recurse)
        for name, state in self.states.named_buffers():
            if state.dtype is not before[name].dtype:  # that of sums, whatever the model around the tables becomes
                self.states.register_buffer(name, before[name].to(state.device))
        return self

    @property
    def splits_rows(self) -> bool:
        """Whether any table is split by rows: then the ops take an id that is not here for another shard's."""
        return any(shard.splits_rows for shard in self.shards)

    def forward(self, received: Jagged, samples: int, block_order: Sequence[int], *, bounds: str = "none") -> Tensor:
        """Look up and pool; the backward pass of the result updates the shards.

        Parameters
        ----------
        received : Jagged
            Bags ``(block, lookup, sample)`` of ``K`` blocks.
        samples : int
            ``B``, samples per block.
        block_order : sequence of int
            Output block that each input block fills, ``K`` of them.
        bounds : {"none", "error"}
            As for the ops; none where ids were checked before.

        Returns
        -------
        Tensor
            ``[K * B, width]`` in the tables' dtype.
        """
        # Nothing that enters requires grad, so an anchor that does makes autograd call the update.
        anchor = torch.zeros((), requires_grad=torch.is_grad_enabled())
        return _LookupThenUpdate.apply(anchor, self, received, samples, list(block_order), bounds)

    @torch.no_grad()
    def lookup_into(self, out: Tensor, received: Jagged, block_order: list[int], bounds: str = "none") -> None:
        """Pool into ``out``, ``[K * B, width]``, without autograd."""
        if self.shards:
            ops.embedding_bag_(
                out,
                self._tensors(self.tables),
                received.ids,
                received.offsets,
                per_sample_weights=received.weights,
                bounds=bounds,
                **self._bag_layout(block_order),
            )

    @torch.no_grad()
    def lookup_into_blocks(
        self, blocks: list[Tensor], received: Jagged, block_order: list[int], format: WireFormat
    ) -> None:
        """Pool into equal blocks of rows, those of bytes encoded in ``format``, without autograd."""
        if self.shards:
            ops.embedding_bag_blocks_(
                blocks,
                self._tensors(self.tables),
                received.ids,
                received.offsets,
                format=format,
                per_sample_weights=received.weights,
                bounds="none",
                **self._bag_layout(block_order),
            )

    @torch.no_grad()
    def lookup(self, received: Jagged, samples: int, block_order: list[int], bounds: str = "none") -> Tensor:
        """Pool without autograd; shapes as in :meth:`forward`."""
        rows = len(block_order) * samples
        out = torch.empty(rows, self.width, dtype=self.dtype, device=received.ids.device)
        self.lookup_into(out, received, block_order, bounds)
        return out

    @torch.no_grad()
    def lookup_as(self, dtype: torch.dtype, received: Jagged, block_order: list[int]) -> Tensor:
        """Pool without autograd into rows of another dtype, ``[K * B, width]``."""
        return ops.embedding_bag(
            self._tensors(self.tables),
            received.ids,
            received.offsets,
            per_sample_weights=received.weights,
            bounds="none",
            out_dtype=dtype,
            **self._bag_layout(block_order),
        )

    @torch.no_grad()
    def tower_pool(
        self,
        received: Jagged,
        block_order: list[int],
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        product_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Pool and multiply, ``[K * B, C]``, without autograd; ``weight`` is ``[C, width]``."""
        return ops.tower_pool(
            self._tensors(self.tables),
            received.ids,
            received.offsets,
            weight,
            bias,
            per_sample_weights=received.weights,
            bounds="none",
            product_dtype=product_dtype,
            **self._bag_layout(block_order),
        )

    @torch.no_grad()
    def tower_weight_grad(
        self, grad: Tensor, received: Jagged, block_order: list[int], *, product_dtype: torch.dtype | None = None
    ) -> Tensor:
        """Gradient of :meth:`tower_pool`'s weight, given that of its result; sums in the order of the bags."""
        if not self.shards:
            return grad.new_zeros(grad.shape[1], 0)
        return ops.tower_pool_weight_backward(
            grad,
            self._tensors(self.tables),
            received.ids,
            received.offsets,
            per_sample_weights=received.weights,
            product_dtype=product_dtype,
            **self._bag_layout(block_order),
        )

    @torch.no_grad()
    def update(self, grad: Tensor, received: Jagged, block_order: list[int], bounds: str = "none") -> None:
        """One optimizer step from ``grad``, ``[K * B, width]``. Collective over the tower where columns are split."""
        tables, bags = self._tensors(self.tables), self._bag_layout(block_order)
        arguments = (grad.contiguous(), received.ids, received.offsets)
        weights = received.weights
        row_mean_squares = None
        if self._row_means is not None:
            squares: list[Tensor] = []
            if tables:
                squares = ops.embedding_row_squares(
                    tables, *arguments, per_sample_weights=weights, weight_decay=self.optimizer.weight_decay, **bags
                )
            row_mean_squares = self._row_means(squares)
        if tables:
            ops.embedding_update_(
                tables,
                self._tensors(self.states),
                *arguments,
                per_sample_weights=weights,
                bounds=bounds,
                optimizer=self.optimizer.kind,
                lr=self.optimizer.lr,
                eps=self.optimizer.eps,
                weight_decay=self.optimizer.weight_decay,
                row_mean_squares=row_mean_squares,
                **bags | self._rounding(),
            )
        if self.step is not None:
            self.step += 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.step is not None:  # states of before 16-bit tables were rounded at random do not count steps
            state_dict.setdefault(prefix + "step", torch.zeros_like(self.step))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _rounding(self) -> dict[str, Any]:
        if self.step is None or self.optimizer.rounding == "nearest":
            return {}
        return {"seeds": self._seeds, "step": self.step, "column_starts": self._column_starts}

    def _bag_layout(self, block_order: list[int]) -> dict[str, Any]:
        return {
            "feature_tables": self._feature_tables,
            "pooling": self._poolings,
            "row_starts": self._row_starts,
            "block_order": block_order,
        }

    def _tensors(self, holder: nn.Module) -> list[Tensor]:
        return list(holder.buffers())


class _LookupThenUpdate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        shards: TableShards,
        received: Jagged,
        samples: int,
        block_order: list[int],
        bounds: str,
    ) -> Tensor:
        ctx.shards, ctx.bags = shards, (received, block_order, bounds)
        return shards.lookup(received, samples, block_order, bounds)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        ctx.shards.update(grad, *ctx.bags)
        return None, None, None, None, None, None


def _buffer_name(shard: Shard) -> str:
    return shard.key.replace("%", "%25").replace(".", "%2E")  # a dot would end a module's name
