"""Linear tower modules at the owners of tables: one model, in slices that nobody sums, chosen by all ranks alike."""

import functools
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dmt_kernels.comm import Mesh, traffic
from dmt_kernels.embedding import EmbeddingExchange, build_exchange
from dmt_kernels.embedding.placement import quickest
from dmt_kernels.spec import Batch, InputError, Topology
from dmt_kernels.train import checkpoint
from dmt_kernels.train.step import TrainStep
from tests.devices import on_cuda
from tests.embedding.worlds import SAMPLES, SEED, World, global_batch, jagged, mesh_of, to, train
from tests.ranks import run_ranks

TOPOLOGY = Topology(2, 2)
OWNER = World(TOPOLOGY, tower="linear", placement="owner")
MEMBER = replace(OWNER, placement="member")
CHUNKS = (1, 2, 4)  # four do not divide the samples: three are taken
COLUMNS = (("users", "columns"), ("times", "columns"))


def _exchange(world: World, mesh: Mesh | None, kind: str = "sptt", **options) -> EmbeddingExchange:
    modules = {"tower_modules": world.tower_modules(), "placement": world.placement}
    fixed = {"optimizer": world.optimizer, "seed": SEED, "mesh": mesh}
    return build_exchange(kind, world.plan(), **{**fixed, **modules, **options}).to(world.device)


def _train_all(rank: int, device: str = "cpu") -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    worlds = [MEMBER, *(replace(OWNER, chunks=chunks) for chunks in CHUNKS)]
    trained = [train(replace(world, device=device), "sptt", rank) for world in worlds]
    return trained, [_step(rank, threads) for threads in (1, 3)] if device == "cpu" else []


def _step(rank: int, threads: int) -> dict[str, torch.Tensor]:
    """What one step makes of the tables, and the gradients of a slice."""
    torch.set_num_threads(threads)
    exchange = _exchange(OWNER, mesh_of(TOPOLOGY, OWNER.device))
    out = exchange(_batch(OWNER, exchange, rank, 0).sparse)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).sin())
    grads = {name: p.grad for name, p in exchange.tower_slices.named_parameters()}
    return {"out": out.detach(), **exchange.shards.state_dict(), **grads}


@functools.cache
def _trained() -> list[tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]]:
    return run_ranks(_train_all, TOPOLOGY.world)


def test_both_placements_train_one_model_in_float32() -> None:
    for (member, owner, *_), _ in _trained():
        _assert_one_model(member, owner)


def _assert_one_model(member: dict[str, torch.Tensor], owner: dict[str, torch.Tensor]) -> None:
    assert member.keys() == owner.keys()
    for name, value in member.items():
        torch.testing.assert_close(owner[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_no_bit_depends_on_chunks_or_threads() -> None:
    for (_, *in_chunks), on_threads in _trained():
        for alike in (in_chunks, on_threads):
            _assert_equal_bits(*alike)


def _assert_equal_bits(first: dict[str, torch.Tensor], *others: dict[str, torch.Tensor]) -> None:
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


class _Scale(nn.Module):
    """The smallest model over an exchange."""

    def __init__(self, exchange: EmbeddingExchange) -> None:
        super().__init__()
        self.exchange = exchange
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, dense, sparse) -> torch.Tensor:
        return (self.exchange(sparse) * self.scale).sum(1)


def _batch(world: World, exchange: EmbeddingExchange, rank: int, step: int) -> Batch:
    ids, weights, target = global_batch(world, exchange.features, step)
    mine = slice(rank * SAMPLES, (rank + 1) * SAMPLES)
    sparse = to(world.device, jagged(world, ids, weights, mine.start, mine.stop))
    dense, label, weight = (x.to(world.device) for x in (torch.empty(SAMPLES, 0), target[mine], torch.ones(SAMPLES)))
    return Batch(dense, sparse, label.round(), weight, SAMPLES * TOPOLOGY.world)


def _slices(rank: int, folder: Path, device: str = "cpu") -> tuple[int, int, int]:
    """Train in slices, save, and go on from the file in both placements."""
    mesh, world = mesh_of(TOPOLOGY, device), replace(OWNER, splits=COLUMNS, device=device)
    model = _Scale(_exchange(world, mesh)).to(device)
    step = TrainStep(model, mesh, optimizer="adam", lr=0.01)
    batches = [_batch(world, model.exchange, rank, i) for i in range(4)]
    traffic.reset()
    for batch in batches[:2]:
        step(batch)
    assert not any(stage == "tower_dense" for stage, _ in traffic.sent_bytes()), "nothing of slices is summed"
    held = sum(p.numel() for p in model.exchange.tower_slices.parameters())
    states = [state["exp_avg"].numel() for p, state in step.optimizer.state.items() if p is not model.scale]
    whole = sum(p.numel() for p in world.tower_modules()[mesh.tower_index].parameters())

    checkpoint.save(model, folder, mesh)
    scores = []
    for placed in ("owner", "member"):
        other = _Scale(_exchange(replace(world, placement=placed), mesh, seed=SEED + 1)).to(device)
        checkpoint.load(other, folder, mesh)
        expected = model.exchange.whole_state()
        for name, value in other.exchange.whole_state().items():
            assert torch.equal(value, expected[name]), name
        more = TrainStep(other, mesh, optimizer="adagrad", lr=0.01)
        scores.append(torch.stack([more(batch) for batch in batches[2:]]))
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-6)
    return held, sum(states), whole


def test_slices_are_parameters_of_their_owners_and_a_file_holds_the_whole(tmp_path) -> None:
    _assert_slices(run_ranks(_slices, TOPOLOGY.world, tmp_path / "model"))


def _assert_slices(figures: list[tuple[int, int, int]]) -> None:
    for t in range(TOPOLOGY.towers):
        members = [figures[rank] for rank in TOPOLOGY.tower_ranks(t)]
        assert sum(held for held, _, _ in members) == members[0][2], "every parameter once"
        assert all(0 < held < whole for held, _, whole in members)
        assert all(held == state for held, state, _ in members), "and its optimizer's state beside it"


def _choices(rank: int, device: str = "cpu") -> tuple[str, str, str, str]:
    mesh = mesh_of(TOPOLOGY, device)
    auto = replace(OWNER, placement="auto", device=device)
    sparse = _batch(auto, _exchange(MEMBER, mesh), rank, 0).sparse
    chosen = _exchange(auto, mesh, trial=sparse)
    fixed = _exchange(replace(auto, placement=chosen.placement), mesh)
    for exchange in (chosen, fixed):  # a trial leaves no trace
        exchange(sparse).square().sum().backward()
    expected = fixed.state_dict()
    assert chosen.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in chosen.state_dict().items())

    rows = _exchange(replace(auto, splits=(("users", "rows"),)), mesh)  # no choice, hence no trial
    passing = _exchange(auto, mesh, tower_modules=None)

    # Three of four ranks find b quicker; but the slowest rank is what all wait for.
    now = [0.0]
    time.perf_counter = lambda: now[0]  # of this process alone
    takes = {"a": 1.0, "b": 5.0} if rank == 0 else {"a": 3.0, "b": 2.0}
    trials = {name: lambda seconds=seconds: now.append(now.pop() + seconds) for name, seconds in takes.items()}
    return chosen.placement, rows.placement, passing.placement, quickest(trials, mesh)


def test_auto_is_one_choice_of_all_ranks_and_leaves_no_trace() -> None:
    _assert_one_choice(run_ranks(_choices, TOPOLOGY.world))


def _assert_one_choice(choices: list[tuple[str, str, str, str]]) -> None:
    assert choices == [(choices[0][0], "member", "member", "a")] * TOPOLOGY.world
    assert choices[0][0] in ("member", "owner")


def _all_on(rank: int, device: str, folder: Path) -> tuple:
    return _train_all(rank, device)[0], _slices(rank, folder, device), _choices(rank, device)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_cuda)])
def test_placements_on_gpus(device: str, tmp_path: Path) -> None:
    """All of the above, by ranks that are started once."""
    results = run_ranks(_all_on, TOPOLOGY.world, device, tmp_path / "model", device=device, timeout_s=120)
    for (member, *owners), _, _ in results:
        _assert_one_model(member, owners[0])
        _assert_equal_bits(*owners)
    _assert_slices([figures for _, figures, _ in results])
    _assert_one_choice([choice for _, _, choice in results])


def _refusals(rank: int) -> None:
    mesh = mesh_of(TOPOLOGY, "cpu")
    for world, options, sentence in (
        (OWNER, {"placement": "host"}, "placement 'host' is unknown; choose one of member, owner, auto"),
        (OWNER, {"kind": "flat", "tower_modules": None}, "which a flat exchange does not have"),
        (OWNER, {"tower_modules": None}, "there are no tower modules"),
        (replace(OWNER, tower="cross"), {}, "the DCNTower of tower 0 is not linear or cannot be cut"),
        (replace(OWNER, splits=(("users", "rows"),)), {}, "table 'users' is split by rows"),
        (replace(OWNER, splits=(("times", "replicated"),)), {}, "table 'times' is replicated"),
        (OWNER, {"placement": "auto"}, "'auto' needs a batch to try"),
        (OWNER, {"placement": "owner" if rank == 1 else "member"}, "rank 1 has placement owner, rank 0 has placement"),
    ):
        with pytest.raises(InputError, match=sentence):
            _exchange(world, mesh, **options)

    # Whoever shares parameters has the same values: members of a tower those of its module, and all the over-arch's.
    modules, (mine, others) = OWNER.tower_modules(), mesh.topology.tower_ranks(1)
    with torch.no_grad():
        for parameter in modules[1].parameters():
            parameter += rank == others
    if mesh.tower_index == 1:
        with pytest.raises(InputError, match=f"rank {others} has values of tower module 1 .*, rank {mine} has"):
            _exchange(OWNER, mesh, tower_modules=modules)
    else:
        _exchange(OWNER, mesh, tower_modules=modules)
    model = _Scale(_exchange(MEMBER, mesh))
    model.scale.data += rank == 2
    with pytest.raises(InputError, match="rank 2 has values of the over-arch .*, rank 0 has"):
        TrainStep(model, mesh, optimizer="adam", lr=0.01)


def test_what_cannot_be_placed_so_is_refused_on_all_ranks() -> None:
    run_ranks(_refusals, TOPOLOGY.world)


@pytest.mark.parametrize("placed", ["member", "owner", "auto"])
def test_in_one_process_it_makes_no_difference(placed: str) -> None:
    exchange = _exchange(replace(OWNER, placement=placed), None)
    assert set(exchange.tower_modules) == {"0", "1"}
    assert not exchange.tower_slices
