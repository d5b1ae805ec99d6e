"""Pooled lookup into messages, against the lookup and then a pass that encodes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.agreement import Disagreement
from bench.bags import SHAPES, BagSpec, make_bags
from bench.ceilings import Ceilings
from bench.ops.embedding_bag import lookup_floor
from bench.registry import DEFAULT, FULL, Registry, Setting, Work
from dmt_kernels import ops
from dmt_kernels.spec import WireFormat


def register(registry: Registry) -> None:
    for shape in ("S1", "S2", "S3", "tiny"):
        for ids in ("uniform", "zipf"):
            spec = BagSpec(SHAPES[shape], ids)
            for wire_format in WireFormat:
                common = shape in ("S1", "S2") and wire_format in (WireFormat.BF16, WireFormat.FP8)
                name = f"embedding_bag_blocks/{spec.name}/{wire_format.value}"
                registry.add(name, partial(build, spec, wire_format), DEFAULT if common else FULL, spec.tables_key)


def build(spec: BagSpec, wire_format: WireFormat, setting: Setting) -> Work:
    """Both write into memory that is there, as an exchange has it."""
    bags = make_bags(spec)
    samples, width = spec.shape.samples, bags.width
    message = torch.empty(samples, wire_format.row_bytes(width), dtype=torch.uint8)
    pooled, encoded = torch.empty(samples, width, dtype=spec.dtype), torch.empty_like(message)

    def ours() -> Tensor:
        ops.embedding_bag_blocks_([message], bags.tables, bags.ids, bags.offsets, format=wire_format, **bags.options)
        return message

    def two_passes() -> Tensor:
        ops.embedding_bag_(pooled, bags.tables, bags.ids, bags.offsets, **bags.options)
        torch.ops.dmt.wire_encode_blocks_(encoded.view(-1), [pooled], wire_format.code)
        return encoded

    def check() -> None:
        if not torch.equal(ours(), two_passes()):
            raise Disagreement("lookup into messages, and lookup and then encoding: not the same bytes")

    def floor(ceilings: Ceilings) -> dict[str, float]:
        return {"rows": lookup_floor(bags, ceilings)["rows"], "message": ceilings.write(message.numel())}

    read = float(bags.row_places()[1].sum())
    return Work(ours, {"two passes": two_passes}, check, floor, work_bytes=read + message.numel())
