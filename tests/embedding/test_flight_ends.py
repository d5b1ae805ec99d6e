"""A batch that has ended leaves nothing behind, and odd ways through a step are ways."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from dmt_kernels.comm import build_mesh
from dmt_kernels.embedding import build_exchange
from dmt_kernels.spec import Payloads, Topology
from tests.embedding.worlds import SAMPLES, SEED, World, global_batch, jagged
from tests.ranks import run_ranks

TOPOLOGY = Topology(2, 2)


def _ways(rank: int) -> None:
    world = World(TOPOLOGY)
    mesh = build_mesh(TOPOLOGY.towers, TOPOLOGY.members, timeout_s=30)
    owner = {"tower_modules": replace(world, tower="linear").tower_modules(), "placement": "owner"}
    for kind, more in (("flat", {}), ("sptt", {}), ("sptt", owner)):
        exchange = build_exchange(
            kind,
            world.plan(),
            optimizer=world.optimizer,
            seed=SEED,
            mesh=mesh,
            payloads=Payloads.of("bf16"),
            chunks=2,
            **more,
        )
        flights = []
        make = exchange._flight

        def remember(cargo, make=make, flights=flights):
            flight = make(cargo)
            flights.append(weakref.ref(flight))
            return flight

        exchange._flight = remember
        ids, weights, _ = global_batch(world, exchange.features, 0)
        sparse = jagged(world, ids, weights, rank * SAMPLES, (rank + 1) * SAMPLES)

        with torch.inference_mode():  # its memory is what training goes on with
            exchange(sparse)
        out = exchange(sparse)
        out.sum().backward()  # a gradient whose columns do not lie side by side
        with pytest.raises(RuntimeError, match="one backward pass"):
            exchange(sparse)
            out.sum().backward()
        unused = exchange(sparse)
        del out, unused
        gc.collect()
        assert len(flights) == 4
        assert [flight() for flight in flights] == [None] * 4, kind


def test_flights_end() -> None:
    run_ranks(_ways, TOPOLOGY.world)
