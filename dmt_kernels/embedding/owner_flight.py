"""A batch on the road of two stages, with a linear tower module in slices at the owners of tables.

Every owner multiplies what it looks up by its columns of the weight, on the way: pooled rows are kept only where
a GPU that trains is quicker so (:mod:`dmt_kernels.ops.kept_rows`). What travels inside the tower are partial sums,
which a member adds up in member order; so the tower stage is a reduce-scatter, made of an all-to-all and a local sum.
Backward, every owner gets the whole tower's gradient of the sums, and has the gradient of its slice without a
reduction.

Letters, for a chunk of ``b`` samples: ``R`` members, ``T`` towers, ``D_r`` columns of this member, ``C_t`` that
the tower sends.
"""

from __future__ import annotations

import itertools
from functools import cached_property

import torch
from torch import Tensor

from dmt_kernels import ops
from dmt_kernels.embedding.flight import Cargo
from dmt_kernels.embedding.peer_flight import PeerFlight, TowerRoad
from dmt_kernels.embedding.tower_step import product_dtype
from dmt_kernels.ops.kept_rows import is_for_library, rounded_product
from dmt_kernels.towers import TowerSlice


class OwnerFlight(PeerFlight):
    """Lookup with product, tower stage of partial sums, peer stage.

    Parameters
    ----------
    cargo : Cargo
        The batch.
    road : TowerRoad
        Its way.
    part : TowerSlice
        This member's columns of the tower module.
    """

    def __init__(self, cargo: Cargo, road: TowerRoad, part: TowerSlice) -> None:
        super().__init__(cargo, road)
        self._part = part
        # Members without tables have nothing to add, and need no gradient.
        self._owns = [width > 0 for width in self.layout.sent_widths]
        self._rows = [self.towers * self.chunk_samples * owns for owns in self._owns]
        self._partial: list[list[Tensor]] = []  # of every chunk: [T*b, C_t] of every owner
        self._records = torch.is_grad_enabled()
        self._kept: dict[int, Tensor] = {}  # of chunks not collected yet: pooled rows [W*b, D_r], if kept
        self._weight_grad: Tensor | None = None  # of the chunks so far, of kept rows

    @cached_property
    def _weight_bias(self) -> tuple[Tensor, ...]:
        weight, bias = self._part.weight_bias()
        return (weight,) if bias is None else (weight, bias)

    @cached_property
    def _product_dtype(self) -> torch.dtype | None:
        narrow = product_dtype(self._weight_bias[0])
        return narrow if narrow is torch.bfloat16 else None  # `tower_pool` has no float16 products

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Weight ``[C_t, D_r]`` and, on one member, bias ``[C_t]``; computed when autograd may see it."""
        return self._weight_bias

    @cached_property
    def _keeps(self) -> bool:
        weight, rows = self.inputs[0], len(self.block_order) * self.chunk_samples
        return self._records and weight.requires_grad and is_for_library(weight, rows, self._product_dtype)

    def expect(self, chunk: int) -> None:
        """Begin both stages."""
        super().expect(chunk)
        memory = self.buffers.take(f"arrived {chunk}", self.members, self.towers * self.chunk_samples, self.width)
        self._partial.append([block[:rows] for block, rows in zip(memory, self._rows, strict=True)])
        self._tickets["tower", chunk] = self.tower.expect(self._partial[chunk], self.member)

    def lookup(self, chunk: int) -> list[Tensor]:
        """Pool and multiply a chunk: each member's ``[T*b, C_t]``; without tables ``[0, C_t]``."""
        weight, *bias = (value.detach() for value in self.inputs)
        bags = self.received.chunks[chunk]
        if self._keeps:
            self._kept[chunk] = self.shards.lookup_as(torch.bfloat16, bags, self.block_order)
            sums = rounded_product(self._kept[chunk], weight.bfloat16().t(), self.shards.dtype, *bias)
        else:
            sums = self.shards.tower_pool(bags, self.block_order, weight, *bias, product_dtype=self._product_dtype)
        return list(sums.view(self.members, self._rows[self.member], self.width).unbind(0))

    def send(self, chunk: int, looked_up: list[Tensor]) -> None:
        """Send partial sums in the tower stage."""
        self.tower.send(self._tickets["tower", chunk], looked_up, self.member)
        self._partial[chunk][self.member] = looked_up[self.member]

    def compress(self, chunk: int) -> None:
        """Wait for the tower stage, add up, send in the peer stage."""
        self._wait("tower", chunk)
        total, *more = itertools.compress(self._partial[chunk], self._owns)
        for partial in more:
            total = torch.add(total, partial, out=self.compressed(chunk).flatten(0, 1))
        self.send_to_peers(chunk, total.view(self.towers, self.chunk_samples, self.width))

    def returning(self, chunk: int) -> Tensor:
        """Where the own block of the tower's gradients lies."""
        return self._tower_grads(chunk)[self.member].view(self.towers, self.chunk_samples, self.width)

    def decompress(self, chunk: int) -> None:
        """Wait for the peer stage's gradient, and start showing it to all owners."""
        self._wait("peer", chunk)
        sent = [self._grads[chunk][:rows] for rows in self._rows]
        arriving = [block[: self._rows[self.member]] for block in self._tower_grads(chunk)]
        self._tickets["tower", chunk] = self.tower.start_back(sent, arriving, self.member, self._draw(chunk))

    def collect(self, chunk: int) -> None:
        """Wait for the whole tower's gradient: that of the pooled rows is its product with the slice."""
        self._wait("tower", chunk)
        weight = self.inputs[0].detach()
        grad = self._tower_grads(chunk).flatten(0, 1)
        if self._keeps:
            grad = grad.bfloat16()  # for both products
            weight_grad = rounded_product(grad.t(), self._kept.pop(chunk), torch.float32)
            self._weight_grad = weight_grad if self._weight_grad is None else self._weight_grad.add_(weight_grad)
        self.pooled_grad(chunk).copy_(ops.tower_pool_pooled_backward(grad, weight, product_dtype=self._product_dtype))

    def input_grads(self) -> tuple[Tensor | None, ...]:
        """Gradients of the slice: chunk by chunk of kept rows, or of rows looked up again, whatever the chunks are."""
        super().input_grads()
        if not any(value.requires_grad for value in self.inputs):  # frozen
            return tuple(None for _ in self.inputs)
        grads = self._all_tower_grads()  # [n, W, b, C_t]
        if self._weight_grad is None:
            weight_grad = self.shards.tower_weight_grad(
                grads.flatten(0, 2), self.received.bags, self.bag_order, product_dtype=self._product_dtype
            )
        else:
            weight_grad, self._weight_grad = self._weight_grad.to(self.shards.dtype), None
        if len(self.inputs) == 1:
            return (weight_grad,)
        return weight_grad, grads.transpose(0, 1).flatten(0, 2).sum(0)

    def _all_tower_grads(self) -> Tensor:
        blocks = len(self.block_order)
        return self.buffers.take("tower grads", self.chunks, blocks, self.chunk_samples, self.width)

    def _tower_grads(self, chunk: int) -> Tensor:
        """Of all members, ``[R, T*b, C_t]``."""
        return self._all_tower_grads()[chunk].view(self.members, self.towers * self.chunk_samples, self.width)
