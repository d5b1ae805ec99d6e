"""Lookup fused with a linear tower module, against a lookup and a product; and the way back with the table update."""

from __future__ import annotations

from functools import partial
from typing import Any

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


# What ours and the peers round factors to before they multiply them, of float32 tables, and how a case's name says so.
PRODUCTS = {
    "": (torch.float32, torch.float32),
    "/bf16_products": (torch.bfloat16, torch.float32),
    "/bf16_products_of_all": (torch.bfloat16, torch.bfloat16),
}


def register(registry: Registry) -> None:
    for shape, columns in (("S3", 832), ("S3", 416), ("tiny", 12)):
        for dtype in (torch.float32, torch.bfloat16):
            for ids in IDS:
                spec = BagSpec(SHAPES[shape], ids, dtype=dtype)
                common = shape == "S3" and dtype == torch.float32 and ids == "uniform"
                name = f"tower_pool/{spec.name}/{sum(spec.shape.dims)}to{columns}"
                if dtype == torch.bfloat16:
                    registry.add(name, partial(build, spec, columns, (dtype, dtype)), FULL, spec.tables_key)
                    continue
                for words, products in PRODUCTS.items():
                    effort = (QUICK if columns == 832 and not words else DEFAULT) if common else FULL
                    registry.add(f"{name}{words}", partial(build, spec, columns, products), effort, spec.tables_key)
                    effort = DEFAULT if common and columns == 832 else FULL
                    backward = partial(build_backward, spec, columns, products)
                    registry.add(f"{name}{words}/backward", backward, effort, spec.tables_key)


def build(spec: BagSpec, columns: int, products: tuple[torch.dtype, torch.dtype], setting: Setting) -> Work:
    bags = make_bags(spec)
    tables, weight = bags.tables, make_weight(columns, bags.width, spec.dtype)
    rounded = torch.bfloat16 if torch.bfloat16 in products else torch.float32
    options: dict[str, Any] = {} if spec.dtype == products[0] else {"product_dtype": products[0]}

    def ours() -> Tensor:
        return ops.tower_pool(tables, bags.ids, bags.offsets, weight, **bags.options, **options)

    peers = baselines.contenders("tower_pool", setting.peers, bags, weight, products[1])

    def check() -> None:
        result = ours()
        head = bags.head(min(CHECKED_SAMPLES, spec.shape.samples))
        expected = oracle(tables, head.ids, head.offsets, weight, **options)
        agree("ours and the oracle", result[: head.spec.shape.samples], expected)
        for name, peer in peers.items():
            agree(f"ours and {name}", result, peer(), products=rounded)

    def floor(ceilings: Ceilings) -> dict[str, float]:
        return {
            "rows": lookup_floor(bags, ceilings)["rows"],
            "product": ceilings.product(spec.shape.samples, bags.width, columns, products[0]),
        }

    return Work(
        ours,
        peers,
        check,
        floor,
        work_bytes=float(bags.row_places()[1].sum()),
        work_flops=2.0 * spec.shape.samples * bags.width * columns,
    )


def build_backward(spec: BagSpec, columns: int, products: tuple[torch.dtype, torch.dtype], setting: Setting) -> Work:
    """From the gradient of the output to that of the weight and to updated tables."""
    bags = make_bags(spec)
    tables, states = bags.source.copy("ours"), zero_states(bags, OPTIMIZER)
    views, weight = tables_in(tables, spec.shape), make_weight(columns, bags.width, spec.dtype)
    grad = torch.randn(spec.shape.samples, columns, generator=torch.Generator().manual_seed(3))
    theirs = bags.source.copy("theirs") if setting.peers else tables
    arguments = (bags, theirs, weight, grad, products[1])
    peers = baselines.contenders("tower_pool_backward", setting.peers, *arguments, optimizer=OPTIMIZER, **SETTINGS)
    rounded = torch.bfloat16 if torch.bfloat16 in products else torch.float32

    def pooled_gradient() -> Tensor:
        return ops.tower_pool_pooled_backward(grad, weight, product_dtype=products[0])

    def ours() -> Tensor:
        weight_grad = ops.tower_pool_weight_backward(
            grad, views, bags.ids, bags.offsets, **bags.options, product_dtype=products[0]
        )
        ops.embedding_update_(views, states, pooled_gradient(), bags.ids, bags.offsets, optimizer=OPTIMIZER, **SETTINGS)
        return weight_grad

    def check() -> None:
        pooled = ops.embedding_bag(bags.tables, bags.ids, bags.offsets, **bags.options)
        weight_grad = ours()
        expected = grad.to(products[0]).double().t() @ pooled.to(products[0]).double()
        agree("the weight's gradient, ours and a product", weight_grad, expected.float())
        for name, peer in peers.items():
            agree(f"the weight's gradient, ours and {name}", weight_grad, peer(), products=rounded)
        pooled_grad = grad.to(products[0]).double() @ weight.to(products[0]).double()
        agree("the pooled rows' gradient, ours and a product", pooled_gradient(), pooled_grad.float())
        is_alike = bool(peers) and rounded == torch.float32
        check_update(bags, tables, theirs if is_alike else None, pooled_gradient(), OPTIMIZER)
        if peers and not is_alike:  # rounded gradients: the steps are as alike as those, the tables much more
            feature = bags.feature_of_ids()
            all_tables = zip(bags.tables, views, tables_in(theirs, spec.shape), strict=True)
            for f, (before, mine, other) in enumerate(all_tables):
                touched = bags.ids[feature == f].unique().long()
                steps = [after[touched] - before[touched] for after in (mine, other)]
                agree(f"the step, ours and the peer's, table {f}", *steps, products=rounded)

    def floor(ceilings: Ceilings) -> dict[str, float]:
        samples = spec.shape.samples
        both = ceilings.product(samples, columns, bags.width, products[0])
        both += ceilings.product(columns, samples, bags.width, products[0])
        rows = lookup_floor(bags, ceilings)["rows"]
        return {"products": both, "rows again": rows, **update_floor(bags, tables, OPTIMIZER, ceilings)}

    return Work(ours, peers, check, floor, work_flops=4.0 * spec.shape.samples * bags.width * columns)


def make_weight(columns: int, width: int, dtype: torch.dtype) -> Tensor:
    """``[C, D]``, small enough for products of order one."""
    return (torch.randn(columns, width, generator=torch.Generator().manual_seed(4)) / width**0.5).to(dtype)
