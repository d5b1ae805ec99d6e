"""The order of a backward pass: the tower module's gradients are out, and can travel, before the tables update."""

import pytest
import torch

from dmt_kernels.embedding import flight
from dmt_kernels.spec import Topology
from tests.embedding.worlds import SAMPLES, World, build, global_batch, jagged
from tests.ranks import run_ranks


def _order(rank: int, tower: str) -> list[str]:
    world = World(Topology(1, 1), tower=tower, chunks=2)
    exchange = build(world, "sptt", rank)
    seen: list[str] = []
    for parameter in exchange.tower_modules.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: seen.append("gradient"))
    update = flight.Flight.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flight.Flight, "update", lambda self: (seen.append("update"), update(self)))
        ids, weights, _ = global_batch(world, exchange.features, 0)
        exchange(jagged(world, ids, weights, 0, SAMPLES)).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in exchange.tower_modules.parameters())
    return seen


@pytest.mark.parametrize("tower", ["linear", "cross", "custom"])
def test_tables_update_last(tower: str) -> None:
    (seen,) = run_ranks(_order, 1, tower)
    assert seen == ["gradient"] * (len(seen) - 1) + ["update"] and len(seen) > 1
