"""The ops on one GPU: ``python -m bench.gpu --out DIR``; with ``--cpu``, tiny, to see that it runs.

Every case is checked against plain PyTorch, then timed beside it, and compared with a floor: its bytes at the rate of a
copy and its operations at the rate of a large product, both measured in the same run. Results are written after every
case.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import environment
from dmt_kernels import ops
from dmt_kernels.spec import WireFormat

Run = Callable[[], Any]
ROUNDS = 15


@dataclass
class Case:
    """What is done, by us and by the others; what it takes at least."""

    name: str
    ours: Run
    peers: dict[str, Run]
    check: Callable[[], None]
    moved_bytes: float
    operations: float = 0.0


@dataclass
class Sizes:
    """Features, rows of a table, columns, samples; those of the tower."""

    features: int = 26
    rows: int = 1_000_000
    dim: int = 128
    samples: int = 16_384
    tower_features: int = 8
    tower_samples: int = 65_536
    out_width: int = 256
    codec_rows: int = 1_000_000
    probe_bytes: int = 1 << 30
    probe_width: int = 8192


TINY = Sizes(3, 100, 16, 32, 2, 64, 24, 50, 1 << 16, 64)


class Bench:
    """One device, its clock and its ceilings."""

    def __init__(self, device: str, sizes: Sizes) -> None:
        self.device = torch.device(device)
        self.sizes = sizes
        self.generator = torch.Generator(self.device).manual_seed(1)
        source = torch.ones(sizes.probe_bytes, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        self.copy_rate = 2 * sizes.probe_bytes / self.seconds(lambda: target.copy_(source))
        table = torch.ones(sizes.rows, sizes.dim, device=device)
        ids = torch.randint(sizes.rows, (sizes.samples * sizes.features,), device=device, generator=self.generator)
        rows = torch.empty(len(ids), sizes.dim, device=device)
        gather = self.seconds(lambda: torch.index_select(table, 0, ids, out=rows))
        self.gather_rate = 2 * rows.numel() * 4 / gather
        square = torch.ones(sizes.probe_width, sizes.probe_width, dtype=torch.bfloat16, device=device)
        self.product_rate = 2 * sizes.probe_width**3 / self.seconds(lambda: square @ square)

    def seconds(self, run: Run) -> float:
        """The median of some calls."""
        for _ in range(3):
            run()
        return statistics.median(self._once(run) for _ in range(ROUNDS))

    def _once(self, run: Run) -> float:
        if self.device.type == "cpu":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def measure(self, case: Case) -> dict[str, Any]:
        case.check()
        ours = self.seconds(case.ours)
        floor = max(case.moved_bytes / self.copy_rate, case.operations / self.product_rate)
        peers = {name: self.seconds(run) for name, run in case.peers.items()}
        return {"case": case.name, "ms": ours * 1e3, "floor": floor / ours} | {
            f"x {name}": seconds / ours for name, seconds in peers.items()
        }

    def ids(self, features: int, samples: int, length: int, skewed: bool = False) -> tuple[Tensor, Tensor]:
        """Bags of `length` ids each; skewed: a few rows get most of them (Zipf, exponent 1.05)."""
        count = features * samples * length
        offsets = torch.arange(0, count + 1, length, device=self.device)
        if not skewed:
            return torch.randint(self.sizes.rows, (count,), device=self.device, generator=self.generator), offsets
        uniform = torch.rand(count, device=self.device, generator=self.generator, dtype=torch.float64)
        top = self.sizes.rows ** (1 - 1.05)
        return ((1 - uniform * (1 - top)) ** (1 / (1 - 1.05)) - 1).long().clamp(0, self.sizes.rows - 1), offsets

    def tables(self, count: int, dtype: torch.dtype) -> list[Tensor]:
        shape = (self.sizes.rows, self.sizes.dim)
        return [
            torch.empty(shape, device=self.device, dtype=dtype).uniform_(-1, 1, generator=self.generator)
            for _ in range(count)
        ]

    # ---- Cases, the most telling first ---------------------------------------------------------------------------

    def cases(self) -> Iterator[Case]:
        for dtype, length in [(torch.bfloat16, 1), (torch.float32, 1), (torch.bfloat16, 10), (torch.float32, 10)]:
            yield self.tower(dtype, length)
        for length in [1, 10, 50]:
            yield self.lookup(torch.float32, length)
        for length, skewed in [(10, False), (10, True)]:
            yield self.update(length, skewed)
        yield self.lookup(torch.bfloat16, 10)
        yield from self.codecs()

    def lookup(self, dtype: torch.dtype, length: int) -> Case:
        s = self.sizes
        tables = self.tables(s.features, dtype)
        ids, offsets = self.ids(s.features, s.samples, length)

        def ours() -> Tensor:
            return ops.embedding_bag(tables, ids, offsets, bounds="none")

        def torchs() -> Tensor:
            some = ids.view(s.features, s.samples, length)
            pooled = [torch.nn.functional.embedding_bag(some[f], table, mode="sum") for f, table in enumerate(tables)]
            return torch.cat(pooled, dim=1)

        row = s.dim * dtype.itemsize
        moved = len(ids) * (row + 8) + len(offsets) * 8 + s.samples * s.features * row
        check = agree(ours, torchs, dtype)
        return Case(f"embedding_bag {name_of(dtype)} L={length}", ours, {"nn.EmbeddingBag": torchs}, check, moved)

    def update(self, length: int, skewed: bool) -> Case:
        s = self.sizes
        tables = self.tables(s.features, torch.float32)
        states = [torch.ones(s.rows, device=self.device) for _ in tables]
        ids, offsets = self.ids(s.features, s.samples, length, skewed)
        grad = torch.rand(s.samples, s.features * s.dim, device=self.device, generator=self.generator)

        def ours() -> None:
            ops.embedding_update_(tables, states, grad, ids, offsets, bounds="none", lr=0.01)

        def check() -> None:
            """Of one table: sgd is a sum of rows."""
            table, here = torch.zeros_like(tables[0]), s.samples * length
            rows = grad[:, : s.dim].contiguous().repeat_interleave(length, 0)
            expected = torch.zeros_like(table).index_add_(0, ids[:here], rows)
            given = (grad[:, : s.dim].contiguous(), ids[:here], offsets[: s.samples + 1])
            ops.embedding_update_([table], [], *given, optimizer="sgd", lr=-1.0, bounds="none")
            torch.testing.assert_close(table, expected, rtol=1e-3, atol=1e-3)

        touched = sum(len(some.unique()) for some in ids.view(s.features, -1))
        passes = (26_000_000).bit_length() / 8 + 1
        moved = len(ids) * (s.dim * 4 + 16 + 16 * passes) + touched * (2 * s.dim * 4 + 8)
        kind = "zipf" if skewed else "uniform"
        return Case(f"embedding_update_ rowwise_adagrad L={length} {kind}", ours, {}, check, moved)

    def tower(self, dtype: torch.dtype, length: int) -> Case:
        s = self.sizes
        tables = self.tables(s.tower_features, dtype)
        ids, offsets = self.ids(s.tower_features, s.tower_samples, length)
        width = s.tower_features * s.dim
        weight = torch.randn(s.out_width, width, device=self.device, generator=self.generator).to(dtype) / width**0.5
        rounded = weight.bfloat16()

        def ours() -> Tensor:
            return ops.tower_pool(tables, ids, offsets, weight, bounds="none", product_dtype=torch.bfloat16)

        def unfused() -> Tensor:
            pooled = ops.embedding_bag(tables, ids, offsets, bounds="none", out_dtype=dtype)
            return (pooled.bfloat16() @ rounded.t()).to(dtype)

        row = s.dim * dtype.itemsize
        moved = len(ids) * (row + 8) + s.tower_samples * s.out_width * dtype.itemsize
        operations = 2.0 * s.tower_samples * width * s.out_width
        check = agree(ours, unfused, torch.bfloat16)
        return Case(f"tower_pool {name_of(dtype)} L={length}", ours, {"unfused": unfused}, check, moved, operations)

    def codecs(self) -> Iterator[Case]:
        x = torch.randn(self.sizes.codec_rows, self.sizes.dim, device=self.device, generator=self.generator)
        for wire_format in WireFormat:
            message = ops.wire_encode(x, wire_format)
            moved = float(x.numel() * 4 + message.numel())

            def check(message: Tensor = message, wire_format: WireFormat = wire_format) -> None:
                head = x[:100].cpu()
                assert torch.equal(message[:100].cpu(), ops.wire_encode(head, wire_format)), "not the CPU's bytes"

            def encode(wire_format: WireFormat = wire_format) -> Tensor:
                return ops.wire_encode(x, wire_format)

            def decode(message: Tensor = message, wire_format: WireFormat = wire_format) -> Tensor:
                return ops.wire_decode(message, x.shape[1], wire_format)

            yield Case(f"wire_encode {wire_format.value}", encode, {}, check, moved)
            yield Case(f"wire_decode {wire_format.value}", decode, {}, check, moved)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def agree(ours: Run, peer: Run, dtype: torch.dtype) -> Callable[[], None]:
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2

    def check() -> None:
        torch.testing.assert_close(ours().float(), peer().float(), rtol=tolerance, atol=tolerance)

    return check


def write(folder: Path, record: dict[str, Any]) -> None:
    """All that is known so far: the run may be cut off at any time."""
    (folder / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    columns = list(dict.fromkeys(key for row in record["cases"] for key in row))
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    for row in record["cases"]:
        lines.append(" | ".join(_cell(row.get(column)) for column in columns))
    facts = [f"- {key}: {value}" for key, value in (record["environment"] | record["ceilings"]).items()]
    (folder / "gpu.md").write_text("\n".join([*facts, "", *(f"| {line} |" for line in lines)]) + "\n")


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--cpu", action="store_true", help="tiny, on the CPU: whether it runs")
    options = parser.parse_args()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = TINY if options.cpu else Sizes()
    bench = Bench("cpu" if options.cpu else "cuda", sizes)
    record: dict[str, Any] = {
        "environment": environment.collect()
        | ({"note": "tiny, on the CPU: no figure means anything"} if options.cpu else {}),
        "sizes": asdict(sizes),
        "ceilings": {
            "copy, TB/s": bench.copy_rate / 1e12,
            "gather of rows, TB/s": bench.gather_rate / 1e12,
            "bf16 product, TFLOP/s": bench.product_rate / 1e12,
        },
        "cases": [],
    }
    for case in bench.cases():
        try:
            row = bench.measure(case)
        except (AssertionError, RuntimeError) as error:
            row = {"case": case.name, "failed": str(error).strip().splitlines()[0]}
        record["cases"].append(row)
        print(", ".join(f"{key} {_cell(value)}" for key, value in row.items()), flush=True)
        write(folder, record)


if __name__ == "__main__":
    main()
