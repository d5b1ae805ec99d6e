"""A batch that has ended leaves nothing behind, and odd ways through a step are ways."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from dmt_kernels.comm import build_mesh
from dmt_kernels.embedding import build_exchange
from dmt_kernels.spec import InputError, Payloads, Topology
from dmt_kernels.towers import CustomTower
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
        by_chunk = exchange.finish_into(exchange.start(sparse), torch.sin)
        by_chunk.sum().backward()
        loss = exchange.finish_into_loss(exchange.start(sparse), torch.sum)
        loss.backward()
        with torch.no_grad():
            exchange.finish_into(exchange.start(sparse), torch.sin)
        assert exchange._memory._free, "the memory is there for the next batch"
        del out, unused, by_chunk, loss
        gc.collect()
        assert len(flights) == 7
        assert [flight() for flight in flights] == [None] * 7, kind


def seeded(seed: int, make, *sizes) -> nn.Module:
    torch.manual_seed(seed)
    return make(*sizes)


def _odd_ways(rank: int) -> None:
    world = World(TOPOLOGY)
    mesh = build_mesh(TOPOLOGY.towers, TOPOLOGY.members, timeout_s=30)
    # A module that writes to what it gets, as it may in one process.
    modules = {
        t: CustomTower(nn.Sequential(nn.ReLU(inplace=True), seeded(t, nn.Linear, sum(dims), 4)), dims)
        for t, dims in enumerate(map(world.plan().tower_dims, range(TOPOLOGY.towers)))
    }
    options = {"optimizer": world.optimizer, "seed": SEED, "mesh": mesh}
    exchange = build_exchange("sptt", world.plan(), tower_modules=modules, **options)
    ids, weights, _ = global_batch(world, exchange.features, 0)
    sparse = jagged(world, ids, weights, rank * SAMPLES, (rank + 1) * SAMPLES)
    own = list(exchange.tower_modules.parameters())
    loss = exchange(sparse).sum()
    assert any(grad.any() for grad in torch.autograd.grad(loss, own, retain_graph=True))
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()

    learned = torch.ones(len(sparse.ids), requires_grad=True)
    with pytest.raises(InputError, match="no gradient of them"):
        exchange(replace(sparse, weights=learned))

    fewer = jagged(world, ids, weights, rank * SAMPLES, (rank + 1) * SAMPLES - (rank == 1))
    exchange.prefetch(fewer)
    with pytest.raises(InputError, match="rank 1 has a batch of 5 samples"):
        exchange.prefetch(sparse)
    exchange.prefetch(sparse)
    exchange(sparse).sum().backward()


def test_odd_ways_through_a_step_are_ways_or_refused() -> None:
    run_ranks(_odd_ways, TOPOLOGY.world)


def test_flights_end() -> None:
    run_ranks(_ways, TOPOLOGY.world)
