"""Ranks that die, sleep, or come with something else than the others: every rank ends soon, and says what was wrong."""

import dataclasses
import os
import re
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dmt_kernels.comm import all_reduce_flat, build_mesh
from dmt_kernels.comm import mesh as mesh_module
from dmt_kernels.embedding import EmbeddingExchange, build_exchange
from dmt_kernels.embedding.sptt_flight import SpttFlight
from dmt_kernels.embedding.table_shards import TableShards
from dmt_kernels.ops import stage
from dmt_kernels.planner import partition_features, place
from dmt_kernels.spec import ExchangeError, InputError, Jagged, Payloads, Table, TableOptimizer, Topology
from tests.devices import on_cuda
from tests.embedding.worlds import mesh_of, to
from tests.ranks import DIED, free_port, run_ranks

pytestmark = pytest.mark.distributed
WORLD, TIMEOUT_S, ALL_ENDED_S = 4, 10, 40
TABLES = (Table("wide", 50, 8, ("a", "b")), Table("narrow", 9, 4, ("c",)))  # a table for each tower of two ranks
SGD = TableOptimizer("sgd", lr=0.1)


def _options(**changes: Any) -> dict[str, Any]:
    """Of an exchange; `tables` and `splits` are its plan's."""
    tables = changes.pop("tables", TABLES)
    splits = {table.name: "whole" for table in tables} | changes.pop("splits", {})
    plan = place(tables, partition_features(tables, 2), Topology(2, 2), splits)
    return {"kind": "sptt", "plan": plan, "optimizer": SGD, "seed": 0, "chunks": 2} | changes


def _batch(exchange: EmbeddingExchange, samples: int = 6) -> Jagged:
    bags = samples * len(exchange.features)
    return Jagged(torch.arange(bags) % 9, torch.arange(bags + 1))


def _step(exchange: EmbeddingExchange, mesh: Any, samples: int = 6) -> None:
    exchange(to(mesh.device, _batch(exchange, samples))).square().sum().backward()
    all_reduce_flat([torch.ones(1000, device=mesh.device)], mesh.dense)


def _fail(fate: str) -> None:
    if fate == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(7)  # longer than the 5 s after which the others give up


def _without(rank: int, fallen: int, fate: str, where: str, shares: bool) -> str:
    """Train until a rank fails in the third step, somewhere; what every rank says then."""
    os.environ["DMT_SHARED_MEMORY"] = str(int(shares))
    mesh = build_mesh(2, 2, timeout_s=TIMEOUT_S if fate == "dies" else 5)
    dist.barrier()  # all have a mesh
    if where == "start" and rank == fallen:
        time.sleep(1)  # and are out of the barrier
        _fail(fate)
    with pytest.raises(ExchangeError) as raised:
        options = _options(optimizer=TableOptimizer("rowwise_adagrad", lr=0.1), splits={"wide": "columns"})
        exchange = build_exchange(**options, mesh=mesh)
        owner, name = {"update": (TableShards, "update"), "peer": (SpttFlight, "deliver")}.get(where, (None, ""))
        for number in range(5):
            if number == 2 and rank == fallen:
                if where == "ids":
                    _fail(fate)
                elif owner is not None:
                    setattr(owner, name, lambda *_: _fail(fate))
            exchange(_batch(exchange)).square().sum().backward()
            if number == 2 and rank == fallen and where == "gradients":
                _fail(fate)
            all_reduce_flat([torch.ones(1000)], mesh.dense)
    time.sleep(1)  # stay until all have seen whom it was about
    return str(raised.value)


@pytest.mark.parametrize("shares", [True, False], ids=["shared memory", "gloo"])
@pytest.mark.parametrize(
    ("fallen", "where", "stages"),
    [
        (0, "start", {"dense"}),
        (2, "ids", {"ids"}),
        (0, "peer", {"peer", "rows", "dense", "tower"}),
        (2, "update", {"rows", "dense"}),
        (0, "gradients", {"dense"}),
    ],
)
def test_a_killed_rank_ends_the_others(fallen: int, where: str, stages: set[str], shares: bool) -> None:
    arguments = (fallen, "dies", where, shares)
    said = run_ranks(_without, WORLD, *arguments, mortal=True, timeout_s=ALL_ENDED_S, port=free_port())
    assert said[fallen] == DIED
    _say_who_and_where({rank: sentence for rank, sentence in enumerate(said) if rank != fallen}, stages, fallen)


@pytest.mark.parametrize("shares", [True, False], ids=["shared memory", "gloo"])
def test_a_rank_that_cannot_be_reached_ends_the_others_and_itself(shares: bool) -> None:
    said = run_ranks(_without, WORLD, 1, "sleeps", "ids", shares, mortal=True, timeout_s=ALL_ENDED_S)
    assert any("and lost rank 1 " in sentence and "Timed out" in sentence for sentence in said)
    _say_who_and_where(dict(enumerate(said)), {"ids"})


def _say_who_and_where(said: dict[int, str], stages: set[str], fallen: int | None = None) -> None:
    for rank, sentence in said.items():
        lost_where = r"and lost ranks? ([\d, ]+) in the (\w+) stage of group '\d+' \(ranks ([\d, ]+)\), and .*"
        told = re.fullmatch(r"rank (\d+) .* " + lost_where, sentence)
        assert told is not None, sentence
        lost, members = told[2].split(", "), told[4].split(", ")
        assert int(told[1]) == rank and told[3] in stages, sentence
        assert fallen is None or str(fallen) in lost or str(fallen) not in members, sentence


UNLIKE = {
    "chunks": ({"chunks": 3}, "chunks 3, rank 0 has chunks 2"),
    "payload": ({"payloads": Payloads.of("bf16")}, "payload bf16, rank 0 has payload fp32"),
    "tower payload": ({"payloads": Payloads.of("fp32", "int8")}, "tower payload int8, rank 0 has tower payload fp32"),
    "rounding": ({"payloads": Payloads(stochastic=True)}, "stochastic rounding True, rank 0 has"),
    "road": ({"kind": "flat"}, "exchange flat, rank 0 has exchange sptt"),
    "dtype": ({"dtype": torch.float64}, "dtype torch.float64, rank 0 has dtype torch.float32"),
    "seed": ({"seed": 1}, "seed 1, rank 0 has seed 0"),
    "bounds": ({"bounds": "none"}, "bounds none, rank 0 has bounds error"),
    "optimizer": ({"optimizer": dataclasses.replace(SGD, lr=0.2)}, "optimizer TableOptimizer"),
    "another table": (
        {"tables": (TABLES[0], Table("other", 9, 4, ("c",)))},
        "table 1 'other' with 9 rows of 4, sum of c, rank 0 has table 1 'narrow' with 9 rows of 4, sum of c",
    ),
    "one table more": (
        {"tables": (*TABLES, Table("more", 2, 4, ("d",)))},
        "table 2 'more' with 2 rows of 4, sum of d, rank 0 has no table 2",
    ),
    "split": ({"splits": {"wide": "rows"}}, "shard 0 rows 0-25 and columns 0-8 of 'wide' on member 0 of tower 0"),
}


def _built_unlike(rank: int, odd: list[int], device: str = "cpu") -> list[str]:
    """Case by case, what a rank says when some of them build another exchange; and then they build the same."""
    mesh = mesh_of(Topology(2, 2), device)
    said = []
    for changes, _ in UNLIKE.values():
        with pytest.raises(InputError) as raised:
            build_exchange(**_options(**(changes if rank in odd else {})), mesh=mesh)
        said.append(str(raised.value))
    _step(build_exchange(**_options(), mesh=mesh).to(device), mesh)
    return said


@pytest.mark.parametrize(("odd", "who"), [([2], "rank 2 has "), ([1, 3], "ranks 1, 3 have ")], ids=["one", "two"])
def test_ranks_that_build_unlike_exchanges_all_say_what_differs(odd: list[int], who: str) -> None:
    _all_say_what_differs(who, run_ranks(_built_unlike, WORLD, odd, timeout_s=ALL_ENDED_S))


def _all_say_what_differs(who: str, said: list[list[str]]) -> None:
    assert said[1:] == said[:1] * 3
    for sentence, (_, difference) in zip(said[0], UNLIKE.values(), strict=True):
        assert sentence.startswith(who + difference)


def _unlike_towers(rank: int, device: str = "cpu") -> str:
    with pytest.raises(InputError) as raised:
        build_mesh(*((4, 1) if rank == 2 else (2, 2)), device=device, timeout_s=TIMEOUT_S)
    return str(raised.value)


UNLIKE_TOWERS = "rank 2 has towers 4, rank 0 has towers 2"


def test_ranks_in_unlike_towers() -> None:
    assert run_ranks(_unlike_towers, WORLD, timeout_s=ALL_ENDED_S) == [UNLIKE_TOWERS] * WORLD


def _unlike_engines(rank: int) -> str:
    if rank == 1:
        mesh_module.engine_in_use = "composition of torch.distributed: told so"
    with pytest.raises(InputError) as raised:
        build_mesh(2, 2, timeout_s=TIMEOUT_S)
    return str(raised.value)


@pytest.mark.skipif(not stage.engine_is_compiled(), reason="there is one engine")
def test_ranks_with_unlike_engines() -> None:
    difference = (
        "rank 1 has communication engine composition of torch.distributed, rank 0 has communication engine compiled"
    )
    for sentence in run_ranks(_unlike_engines, WORLD, timeout_s=ALL_ENDED_S):
        assert sentence.startswith(difference)


def _unlike_batches(rank: int, ahead: bool, device: str = "cpu") -> list[str]:
    """Steps in which a rank has another batch, and between them steps in which none has."""
    mesh = mesh_of(Topology(2, 2), device)
    exchange = build_exchange(**_options(), mesh=mesh).to(device)
    said = []
    for odd, samples in ((3, 5), (1, 1), (0, 100)):
        with pytest.raises(InputError) as raised:
            batch = to(device, _batch(exchange, samples if rank == odd else 6))
            if ahead:
                exchange.prefetch(batch)
            exchange(batch)
        said.append(str(raised.value))
        _step(exchange, mesh)
    exchange.chunks = 3 if rank == 2 else 2
    with pytest.raises(InputError) as raised:
        exchange(to(device, _batch(exchange, 6)))
    said.append(str(raised.value))
    exchange.chunks = 2
    _step(exchange, mesh)
    return said


@pytest.mark.parametrize("ahead", [False, True], ids=["as it comes", "ahead"])
def test_every_rank_says_whose_batch_is_another(ahead: bool) -> None:
    _say_whose_batch(run_ranks(_unlike_batches, WORLD, ahead, timeout_s=ALL_ENDED_S))  # ranks 1 and 3 hold no table


def _say_whose_batch(said: list[list[str]]) -> None:
    assert said[1:] == said[:1] * 3
    assert [sentence.partition(":")[0] for sentence in said[0]] == [
        "rank 3 has a batch of 5 samples, rank 0 of 6 samples",
        "rank 1 has a batch of 1 samples, rank 0 of 6 samples",
        "rank 1 has a batch of 6 samples, rank 0 of 100 samples",
        "rank 2 has a batch of 6 samples in 3 chunks, rank 0 of 6 samples in 2 chunks",
    ]


def _unlike_on(rank: int, device: str) -> tuple[str, list[str], list[str], list[str]]:
    by_batch = (_unlike_batches(rank, ahead, device) for ahead in (False, True))
    return _unlike_towers(rank, device), _built_unlike(rank, [2], device), *by_batch


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_cuda)])
def test_unlike_ranks_on_gpus(device: str) -> None:
    """All of the above but for unlike engines, by ranks that are started once."""
    towers, built, *batches = zip(*run_ranks(_unlike_on, WORLD, device, device=device, timeout_s=120), strict=True)
    assert list(towers) == [UNLIKE_TOWERS] * WORLD
    _all_say_what_differs("rank 2 has ", list(built))
    for said in batches:
        _say_whose_batch(list(said))
