"""Towers in one process round as the wire between towers does."""

import pytest
import torch

from dmt_kernels.spec import Payloads, Topology
from tests.embedding.worlds import World, train
from tests.ranks import run_ranks

WORLDS = [
    World(Topology(2, 2), dtype=torch.float64, tower="cross", payloads=Payloads.of("fp8", stochastic=True)),
    World(Topology(3, 1), dtype=torch.float64, tower="linear", payloads=Payloads.of("bf16")),
]


def _on_ranks(rank, world):
    return train(world, "sptt", rank)


@pytest.mark.distributed
@pytest.mark.parametrize("world", WORLDS, ids=["fp8 stochastic", "bf16"])
def test_local_towers_round_as_ranks_do(world):
    shares = run_ranks(_on_ranks, world.topology.world, world)
    local = train(world, "sptt", None)
    on_ranks = torch.cat([share["outputs"] for share in shares], dim=1)
    # A sum in another order is off by 1e-16, a rounding that went otherwise, or was drawn otherwise, by 1e-3 at least.
    torch.testing.assert_close(local["outputs"], on_ranks, rtol=1e-10, atol=1e-12)
    for name, value in shares[0].items():
        if name.startswith("over_arch"):
            torch.testing.assert_close(local[name], value, rtol=1e-10, atol=1e-12)
    exact = train(World(world.topology, dtype=world.dtype, tower=world.tower), "sptt", None)
    assert (local["outputs"] - exact["outputs"]).abs().max() > 1e-3
