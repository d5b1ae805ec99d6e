"""What is measured, by goal: ours, the peers, a check, and what it takes at least."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from bench.gpu import peers
from bench.gpu.device import Device, Run
from dmt_kernels import ops
from dmt_kernels.ops.kept_rows import rounded_product
from dmt_kernels.spec import WireFormat


@dataclass
class Case:
    """Goals: `of_floor`, the share of the least time `floor_s`; and `ratios`, how much longer peers are to take."""

    goal: str
    name: str
    ours: Run
    check: Run
    floor_s: float
    of_floor: float | None = None
    peers: dict[str, Callable[[], Run]] = field(default_factory=dict)  # made when their turn comes
    ratios: dict[str, float] = field(default_factory=dict)
    note: str = ""


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def agree(ours: Run, peer: Run, tolerance: float) -> Run:
    def check() -> None:
        for a, b in zip(_tensors(ours()), _tensors(peer()), strict=True):
            scale = max(1.0, b.abs().max().item())
            torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=tolerance * scale)

    return check


def _tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


class Cases:
    """All cases on a device, the most telling first."""

    def __init__(self, device: Device) -> None:
        self.device, self.sizes = device, device.sizes
        self.no_fbgemm = peers.why_no_fbgemm()

    def __iter__(self) -> Iterator[Callable[[], Case]]:
        short, long, longest = self.sizes.lengths
        bf16, f32 = torch.bfloat16, torch.float32
        yield lambda: self.tower(bf16, short, 1.8)
        yield lambda: self.lookup(f32, long)
        yield lambda: self.update(long, False)
        yield lambda: self.update(long, True)
        yield lambda: self.tower(f32, short, 1.5)
        yield lambda: self.tower_backward(bf16, short, 1.3)
        yield lambda: self.tower_training(bf16, long)
        yield lambda: self.codec(WireFormat.INT8, True)
        yield lambda: self.encoded_lookup(WireFormat.FP8, long)
        yield lambda: self.lookup(f32, short)
        yield lambda: self.lookup(f32, longest)
        yield lambda: self.tower(bf16, long, 1.1)
        yield lambda: self.tower(f32, long, 1.05)
        yield lambda: self.update(short, False)
        yield lambda: self.update(short, True)
        for wire_format in WireFormat:
            for encodes in (True, False):
                if (wire_format, encodes) != (WireFormat.INT8, True):
                    yield partial(self.codec, wire_format, encodes)
        yield lambda: self.encoded_lookup(WireFormat.BF16, long)
        yield lambda: self.encoded_lookup(WireFormat.FP8, short)
        yield lambda: self.lookup(bf16, long)
        yield lambda: self.tower_backward(f32, short, 1.3)
        yield lambda: self.lookup(bf16, short)
        # Last: no GPU has run them yet, and whoever waits for them in vain has all the rest.
        yield lambda: self.tower(f32, short, 1.5, ring=True)
        yield lambda: self.tower(bf16, long, 1.1, ring=True)
        yield lambda: self.tower(f32, long, 1.05, ring=True)

    def lookup(self, dtype: torch.dtype, length: int) -> Case:
        s = self.sizes
        tables = self.device.tables(s.features, dtype)
        ids, offsets = self.device.bags(s.features, s.samples, length)

        def ours() -> Tensor:
            return ops.embedding_bag(tables, ids, offsets, bounds="none")

        def torchs() -> Tensor:
            return peers.torch_bags(tables, ids, s.samples, length)

        others: dict[str, Callable[[], Run]] = {"nn.EmbeddingBag": lambda: torchs}
        goals = dict.fromkeys(["nn.EmbeddingBag", "FBGEMM"], 1.0)
        if self.no_fbgemm is None:
            others["FBGEMM"] = lambda: peers.fbgemm_bags(tables, ids, offsets)
        twin = peers.triton_twin("embedding_bag", tables, ids, offsets)
        return Case(
            "1", f"embedding_bag {name_of(dtype)} L={length}", ours,
            agree(ours, torchs, 1e-4 if dtype == torch.float32 else 5e-2),
            self._lookup_floor(tables[0], ids, offsets, s.samples * s.features * s.dim * dtype.itemsize),
            0.85, others | twin, goals,
        )  # fmt: skip

    def _lookup_floor(self, table: Tensor, ids: Tensor, offsets: Tensor, written: float) -> float:
        """Rows at the rate of a gather of these very rows; the rest at that of a copy."""
        rows = len(ids) * table.shape[1] * table.element_size()
        rest = ids.nbytes + offsets.nbytes + written
        return rows / self.device.rate_of_rows(table, ids) + rest / self.device.copy_rate

    def update(self, length: int, skewed: bool) -> Case:
        s = self.sizes
        tables = self.device.tables(s.features, torch.float32)
        states = [torch.ones(s.rows, device=self.device.device) for _ in tables]
        ids, offsets = self.device.bags(s.features, s.samples, length, skewed)
        grad = self.device.random(s.samples, s.features * s.dim)

        def ours() -> None:
            ops.embedding_update_(tables, states, grad, ids, offsets, bounds="none", lr=0.01)

        def check() -> None:
            """Of one table: sgd is a sum of rows."""
            table, here = torch.zeros_like(tables[0]), s.samples * length
            rows = grad[:, : s.dim].double().repeat_interleave(length, 0)
            expected = torch.zeros_like(table, dtype=torch.float64).index_add_(0, ids[:here], rows)
            given = (grad[:, : s.dim].contiguous(), ids[:here], offsets[: s.samples + 1])
            ops.embedding_update_([table], [], *given, optimizer="sgd", lr=-1.0, bounds="none")
            torch.testing.assert_close(table.double(), expected, rtol=1e-3, atol=1e-3)

        touched = sum(len(some.unique()) for some in ids.view(s.features, -1))
        row = s.dim * 4
        if length <= 2:  # on Hopper, keys are sorted by the row's number in its table, or else by that among all
            sorting = 24 * -(-s.rows.bit_length() // 10)
        else:
            sorting = 16 * -(-(s.features * s.rows).bit_length() // 8)
        rest = (16 + sorting) * len(ids) + touched * (2 * row + 8)
        floor = len(ids) * row / self.device.gather_rate + rest / self.device.copy_rate
        others: dict[str, Callable[[], Run]] = {
            "nn.EmbeddingBag": lambda: peers.torch_update(tables, grad, ids, s.samples, length)
        }
        if self.no_fbgemm is None:
            others["FBGEMM"] = lambda: peers.fbgemm_update(tables, grad, ids, offsets)
        name = f"embedding_update_ rowwise_adagrad L={length} {'zipf' if skewed else 'uniform'}"
        goals = dict.fromkeys(others, 1.0)
        arguments = (tables, states, grad, ids, offsets)
        twin = peers.triton_twin("embedding_update_", *arguments, optimizer=2, lr=0.01)
        return Case("2", name, ours, check, floor, 0.70, others | twin, goals)

    def _tower(self, dtype: torch.dtype, length: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Tables, ids and offsets of a tower, and the weight of its module."""
        s = self.sizes
        width = s.tower_features * s.dim
        weight = (self.device.random(s.out_width, width) / width**0.5).to(dtype)
        tables = self.device.tables(s.tower_features, dtype)
        return tables, *self.device.bags(s.tower_features, s.tower_samples, length), weight

    def tower(self, dtype: torch.dtype, length: int, goal: float, ring: bool = False) -> Case:
        """`ring`: rows that are pooled are multiplied behind their lookup, too (DMT_TOWER_POOL_RING)."""
        s = self.sizes
        tables, ids, offsets, weight = self._tower(dtype, length)
        rounded = weight.bfloat16()

        def fused() -> Tensor:
            return ops.tower_pool(tables, ids, offsets, weight, bounds="none", product_dtype=torch.bfloat16)

        def by_ring() -> Tensor:
            os.environ["DMT_TOWER_POOL_RING"] = "1"
            try:
                return fused()
            finally:
                del os.environ["DMT_TOWER_POOL_RING"]

        def unfused() -> Tensor:
            pooled = ops.embedding_bag(tables, ids, offsets, bounds="none", out_dtype=torch.bfloat16)
            return peers.product(pooled, rounded.t(), dtype)

        def torchs() -> Tensor:
            pooled = peers.torch_bags(tables, ids, s.tower_samples, length, out_dtype=torch.bfloat16)
            return peers.product(pooled, rounded.t(), dtype)

        written = s.tower_samples * s.out_width * dtype.itemsize
        moving = self._lookup_floor(tables[0], ids, offsets, written)
        product = 2.0 * s.tower_samples * weight.numel() / self.device.product_rate
        others: dict[str, Callable[[], Run]] = {
            "ours and cuBLAS": lambda: unfused,
            "nn.EmbeddingBag and cuBLAS": lambda: torchs,
        }
        if self.no_fbgemm is None:

            def fbgemm() -> Run:
                pool = peers.fbgemm_bags(tables, ids, offsets, out_dtype=torch.bfloat16)
                return lambda: peers.product(pool(), rounded.t(), dtype)

            others["FBGEMM and cuBLAS"] = fbgemm
        twin = peers.triton_twin("tower_pool", tables, ids, offsets, weight, product_dtype=torch.bfloat16)
        ours, name = fused, f"tower_pool {name_of(dtype)} L={length}"
        if ring:
            ours, name = by_ring, name + " by a ring"
        return Case(
            "3", name, ours, agree(ours, unfused, 2e-2),
            max(moving, product), None, others | twin, dict.fromkeys(others, goal),
            "the product binds" if product > moving else "memory binds",
        )  # fmt: skip

    def tower_backward(self, dtype: torch.dtype, length: int, goal: float) -> Case:
        """Both gradients as training has them, of pooled rows that the forward pass has kept, like the unfused pair.

        Beside them those of compiled graphs, which look rows up again.
        """
        s = self.sizes
        tables, ids, offsets, weight = self._tower(dtype, length)
        grad = self.device.random(s.tower_samples, s.out_width)
        kept = ops.embedding_bag(tables, ids, offsets, bounds="none", out_dtype=torch.bfloat16)
        rounded = weight.bfloat16()

        def ours() -> tuple[Tensor, Tensor]:
            factor = grad.bfloat16()
            pooled_grad = ops.tower_pool_pooled_backward(factor, weight, product_dtype=torch.bfloat16)
            return rounded_product(factor.t(), kept, dtype), pooled_grad

        def again() -> tuple[Tensor, Tensor]:
            factor = grad.bfloat16()
            weight_grad = ops.tower_pool_weight_backward(factor, tables, ids, offsets, product_dtype=torch.bfloat16)
            return weight_grad, ops.tower_pool_pooled_backward(factor, weight, product_dtype=torch.bfloat16)

        def unfused() -> tuple[Tensor, Tensor]:
            factor = grad.bfloat16()
            return peers.product(factor.t(), kept, dtype), peers.product(factor, rounded, torch.float32)

        def check() -> None:
            agree(ours, unfused, 3e-2)()
            agree(again, unfused, 3e-2)()

        pooled_grad_bytes = 4 * kept.numel()
        moving = (grad.nbytes + kept.nbytes + pooled_grad_bytes) / self.device.copy_rate
        product = 4.0 * s.tower_samples * weight.numel() / self.device.product_rate
        others: dict[str, Callable[[], Run]] = {
            "cuBLAS on kept rows": lambda: unfused,
            "ours, looked up again": lambda: again,
        }
        return Case(
            "3", f"tower_pool backward {name_of(dtype)} L={length}", ours, check,
            max(moving, product), None, others, {"cuBLAS on kept rows": goal},
            "the products bind" if product > moving else "memory binds",
        )  # fmt: skip

    def tower_training(self, dtype: torch.dtype, length: int) -> Case:
        """Forward and the weight's gradient, by autograd."""
        s = self.sizes
        tables, ids, offsets, weight = self._tower(dtype, length)
        grad = self.device.random(s.tower_samples, s.out_width).to(dtype)
        rounded = weight.bfloat16()
        weight.requires_grad_()

        def ours() -> tuple[Tensor, Tensor]:
            out = ops.tower_pool(tables, ids, offsets, weight, bounds="none", product_dtype=torch.bfloat16)
            (weight_grad,) = torch.autograd.grad(out, weight, grad)
            return out.detach(), weight_grad

        def unfused() -> tuple[Tensor, Tensor]:
            rows = ops.embedding_bag(tables, ids, offsets, bounds="none", out_dtype=torch.bfloat16)
            return peers.product(rows, rounded.t(), dtype), peers.product(grad.bfloat16().t(), rows, dtype)

        rows_bytes = 2 * s.tower_samples * weight.shape[1]
        moving = self._lookup_floor(tables[0], ids, offsets, rows_bytes)
        moving += 2 * (rows_bytes + grad.nbytes) / self.device.copy_rate
        product = 4.0 * s.tower_samples * weight.numel() / self.device.product_rate
        return Case(
            "3", f"tower_pool trained {name_of(dtype)} L={length}", ours, agree(ours, unfused, 3e-2),
            max(moving, product), None, {"ours and cuBLAS": lambda: unfused}, {},
            "the products bind" if product > moving else "memory binds",
        )  # fmt: skip

    def codec(self, wire_format: WireFormat, encodes: bool) -> Case:
        x = self.device.random(self.sizes.codec_rows, self.sizes.dim)
        message = ops.wire_encode(x, wire_format)

        def check() -> None:
            head = x[:100].cpu()
            assert torch.equal(message[:100].cpu(), ops.wire_encode(head, wire_format)), "not the CPU's bytes"

        def encode() -> Tensor:
            return ops.wire_encode(x, wire_format)

        def decode() -> Tensor:
            return ops.wire_decode(message, x.shape[1], wire_format)

        name = f"wire_{'encode' if encodes else 'decode'} {wire_format.value}"
        floor = (x.nbytes + message.nbytes) / self.device.copy_rate
        return Case("4", name, encode if encodes else decode, check, floor, 0.85)

    def encoded_lookup(self, wire_format: WireFormat, length: int) -> Case:
        """Against the same lookup into rows, which writes more: what the codec within it costs."""
        s = self.sizes
        tables = self.device.tables(s.tower_features, torch.float32)
        ids, offsets = self.device.bags(s.tower_features, s.tower_samples, length)
        width = s.tower_features * s.dim
        message = torch.empty(
            s.tower_samples, wire_format.row_bytes(width), dtype=torch.uint8, device=self.device.device
        )

        def ours() -> Tensor:
            ops.embedding_bag_blocks_([message], tables, ids, offsets, format=wire_format, bounds="none")
            return message

        def rows() -> Tensor:
            return ops.embedding_bag(tables, ids, offsets, bounds="none")

        def two_passes() -> Tensor:
            return ops.wire_encode(rows(), wire_format)

        def check() -> None:
            assert torch.equal(ours(), two_passes()), "not the bytes of two passes"

        peers: dict[str, Callable[[], Run]] = {
            "embedding_bag": lambda: rows,
            "embedding_bag and wire_encode": lambda: two_passes,
        }
        floor = self._lookup_floor(tables[0], ids, offsets, message.nbytes)
        name = f"embedding_bag_blocks_ {wire_format.value} L={length}"
        return Case("4", name, ours, check, floor, None, peers, {"embedding_bag": 0.95})
