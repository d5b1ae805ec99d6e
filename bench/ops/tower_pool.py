"""Lookup fused with a linear tower module, against a lookup and a product; and the way back with the table update."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench import baselines
from bench.agreement import agree
from bench.bags import SHAPES, BagSpec, make_bags, tables_in
from bench.ceilings import Ceilings
from bench.ops.embedding_bag import CHECKED_SAMPLES, IDS, lookup_floor
from bench.ops.embedding_update import SETTINGS, check_update, update_floor, zero_states
from bench.registry import DEFAULT, FULL, QUICK, Registry, Setting, Work
from dmt_kernels import ops
from dmt_kernels.ops.reference.tower_pool import tower_pool as oracle

OPTIMIZER = "rowwise_adagrad"


def register(registry: Registry) -> None:
    for shape, columns in (("S3", 832), ("S3", 416), ("tiny", 12)):
        for dtype in (torch.float32, torch.bfloat16):
            for ids in IDS:
                spec = BagSpec(SHAPES[shape], ids, dtype=dtype)
                common = shape == "S3" and dtype == torch.float32 and ids == "uniform"
                effort = (QUICK if columns == 832 else DEFAULT) if common else FULL
                name = f"tower_pool/{spec.name}/{sum(spec.shape.dims)}to{columns}"
                registry.add(name, partial(build, spec, columns), effort, spec.tables_key)
                if dtype == torch.float32:
                    effort = DEFAULT if common and columns == 832 else FULL
                    registry.add(f"{name}/backward", partial(build_backward, spec, columns), effort, spec.tables_key)


def build(spec: BagSpec, columns: int, setting: Setting) -> Work:
    bags = make_bags(spec)
    tables, weight = bags.tables, make_weight(columns, bags.width, spec.dtype)

    def ours() -> Tensor:
        return ops.tower_pool(tables, bags.ids, bags.offsets, weight, **bags.options)

    peers = baselines.contenders("tower_pool", setting.peers, bags, weight)

    def check() -> None:
        result = ours()
        head = bags.head(min(CHECKED_SAMPLES, spec.shape.samples))
        agree("ours and the oracle", result[: head.spec.shape.samples], oracle(tables, head.ids, head.offsets, weight))
        for name, peer in peers.items():
            agree(f"ours and {name}", result, peer())

    def floor(ceilings: Ceilings) -> dict[str, float]:
        return {
            "rows": lookup_floor(bags, ceilings)["rows"],
            "product": ceilings.product(spec.shape.samples, bags.width, columns, spec.dtype),
        }

    return Work(
        ours,
        peers,
        check,
        floor,
        work_bytes=float(bags.row_places()[1].sum()),
        work_flops=2.0 * spec.shape.samples * bags.width * columns,
    )


def build_backward(spec: BagSpec, columns: int, setting: Setting) -> Work:
    """From the gradient of the output to that of the weight and to updated tables."""
    bags = make_bags(spec)
    tables, states = bags.source.copy("ours"), zero_states(bags, OPTIMIZER)
    views, weight = tables_in(tables, spec.shape), make_weight(columns, bags.width, spec.dtype)
    grad = torch.randn(spec.shape.samples, columns, generator=torch.Generator().manual_seed(3))
    theirs = bags.source.copy("theirs") if setting.peers else tables
    arguments = (bags, theirs, weight, grad)
    peers = baselines.contenders("tower_pool_backward", setting.peers, *arguments, optimizer=OPTIMIZER, **SETTINGS)

    def ours() -> Tensor:
        pooled_grad = grad @ weight
        pooled = ops.embedding_bag(views, bags.ids, bags.offsets, **bags.options)
        weight_grad = grad.t() @ pooled
        ops.embedding_update_(views, states, pooled_grad, bags.ids, bags.offsets, optimizer=OPTIMIZER, **SETTINGS)
        return weight_grad

    def check() -> None:
        pooled = ops.embedding_bag(bags.tables, bags.ids, bags.offsets, **bags.options)
        weight_grad = ours()
        agree("ours and a product", weight_grad, (grad.double().t() @ pooled.double()).float())
        for name, peer in peers.items():
            agree(f"the weight's gradient, ours and {name}", weight_grad, peer())
        check_update(bags, tables, theirs if peers else None, grad @ weight, OPTIMIZER)

    def floor(ceilings: Ceilings) -> dict[str, float]:
        samples = spec.shape.samples
        products = ceilings.product(samples, columns, bags.width, spec.dtype)
        products += ceilings.product(columns, samples, bags.width, spec.dtype)
        rows = lookup_floor(bags, ceilings)["rows"]
        return {"products": products, "rows again": rows, **update_floor(bags, tables, OPTIMIZER, ceilings)}

    return Work(ours, peers, check, floor, work_flops=4.0 * spec.shape.samples * bags.width * columns)


def make_weight(columns: int, width: int, dtype: torch.dtype) -> Tensor:
    """``[C, D]``, small enough for products of order one."""
    return (torch.randn(columns, width, generator=torch.Generator().manual_seed(4)) / width**0.5).to(dtype)
