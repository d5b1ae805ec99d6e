"""Batches and plans at their edges: ranks without tables, one sample or none, chunks that do not divide, padding."""

import dataclasses
import os

import pytest
import torch

from dmt_kernels.comm import all_reduce_flat
from dmt_kernels.embedding import build_exchange
from dmt_kernels.planner import partition_features, place
from dmt_kernels.spec import Jagged, Plan, Table, TableOptimizer, Topology
from dmt_kernels.towers import DLRMTower, TowerModule
from dmt_kernels.train.assemble import build_model, make_loader, set_up
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.step import TrainStep
from tests.devices import on_cuda
from tests.embedding.worlds import mesh_of, to
from tests.ranks import run_ranks
from tests.tolerances import TOLERANCES

pytestmark = pytest.mark.distributed
WORLD = 4
TOPOLOGY = Topology(2, 2)
TABLES = (Table("wide", 50, 8, ("a", "b")), Table("narrow", 9, 4, ("c",)))  # a table for each tower of two ranks
SGD = TableOptimizer("sgd", lr=0.1)
DTYPES = {"cpu": torch.float64, "cuda": torch.float32}


def _assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    """`atol` is of float64; in float32 it is to rounding."""
    close = {"rtol": 0, "atol": atol} if actual.dtype is torch.float64 else TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual.cpu(), expected, **close)


def _sparse(samples: int, first: int, last: int, features: int, *, empty: bool) -> Jagged:
    """Samples ``[first, last)`` of a global batch: 0 to 3 ids a bag, or none at all."""
    generator = torch.Generator().manual_seed(samples)
    lengths = torch.randint(0, 4, (features, samples), generator=generator) * (not empty)
    ids = torch.randint(0, 9, (features, samples, 3), generator=generator)
    mine = lengths[:, first:last]
    values = ids[:, first:last][torch.arange(3) < mine.unsqueeze(2)]
    return Jagged(values, torch.nn.functional.pad(mine.flatten().cumsum(0), (1, 0)))


def _tower_modules(plan: Plan, dtype: torch.dtype) -> dict[int, TowerModule]:
    return {t: DLRMTower(plan.tower_dims(t), 10, c=1, p=0, name=f"tower{t}").to(dtype) for t in range(2)}


def _odd(rank: int, kind: str, splits: dict[str, str], placement: str | None, device: str) -> None:
    """``placement``: of linear tower modules, if there are any. The one process is on the CPU."""
    plan = place(TABLES, partition_features(TABLES, 2), TOPOLOGY, splits)
    mesh, dtype = mesh_of(TOPOLOGY, device), DTYPES[device]
    options = {"optimizer": SGD, "seed": 3, "dtype": dtype}
    wired = build_exchange(
        kind,
        plan,
        mesh=mesh,
        chunks=4,
        tower_modules=_tower_modules(plan, dtype) if placement else None,
        placement=placement or "member",
        **options,
    ).to(device)
    local = build_exchange(kind, plan, tower_modules=_tower_modules(plan, dtype) if placement else None, **options)
    for samples, empty in ((1, False), (4, False), (0, False), (3, True), (7, False), (6, False)):
        whole = _sparse(WORLD * samples, 0, WORLD * samples, 3, empty=empty)
        expected = local(whole)
        mine = slice(rank * samples, (rank + 1) * samples)
        actual = wired(to(device, _sparse(WORLD * samples, mine.start, mine.stop, 3, empty=empty)))
        assert actual.shape == (samples, 20)
        _assert_close(actual, expected[mine], atol=1e-12)
        (expected**2).sum().backward()
        (actual**2).sum().backward()
    expected_state = local.state_dict()
    for name, value in wired.state_dict().items():
        if name in expected_state:
            _assert_close(value, expected_state[name], atol=1e-12)
    # A tower module has the gradients of all batches, once all of its members' are added up.
    for part in wired.tower_slices.values():
        for p in part.parameters():
            p.data = torch.zeros_like(p) if p.grad is None else p.grad
    for module in wired.tower_modules.values():
        all_reduce_flat([p.grad for p in module.parameters()], mesh.tower_dense)
        for p in module.parameters():
            p.data = p.grad
    whole = wired.whole_state()
    for name, p in local.named_parameters():
        if name in whole:
            _assert_close(whole[name], p.grad, atol=1e-10)


# Ranks without tables, a rank with replicas alone, and rows.
SPLITS = [{"wide": "whole", "narrow": "whole"}, {"wide": "replicated", "narrow": "whole"}, {"wide": "rows"}]


ROADS = [
    *(("flat", splits, None) for splits in SPLITS),
    *(("sptt", splits, None) for splits in SPLITS),
    ("sptt", SPLITS[0], "member"),
    ("sptt", SPLITS[0], "owner"),
    ("sptt", {}, "owner"),
]


@pytest.mark.parametrize(("kind", "splits", "placement"), ROADS, ids=str)
def test_odd_batches_are_those_of_one_process(kind: str, splits: dict[str, str], placement: str | None) -> None:
    run_ranks(_odd, WORLD, kind, splits, placement, "cpu", timeout_s=40)


def _padded(rank: int, device: str) -> None:
    """An epoch whose last batch has two samples of 32, in ranks and, on rank 0, in one process too."""
    dtype = str(DTYPES[device]).removeprefix("torch.")
    config = TrainConfig(
        data="synthetic:1000", towers=2, members=2, batch_size=32, embedding_dim=4, chunks=3, dtype=dtype, device=device
    )
    mesh = mesh_of(TOPOLOGY, device)
    runs = [(config, mesh)]
    if rank == 0:
        runs.append((dataclasses.replace(config, local=True, chunks=1, device="cpu"), None))
    losses = []
    for options, ranks in runs:
        setup = set_up(options)
        step = TrainStep(build_model(setup, ranks), ranks, optimizer="adam", lr=0.01)
        batches = list(make_loader(setup, "train", ranks, torch.device(options.device)))
        assert batches[-1].global_samples == setup.dataset.rows("train") % 32 != 0
        losses.append(torch.stack([step(batch) for batch in batches]))
    if rank == 0:
        _assert_close(*losses, atol=1e-10)


def test_a_padded_last_batch_in_chunks() -> None:
    run_ranks(_padded, WORLD, "cpu", timeout_s=40)


def _all_on(rank: int, device: str) -> None:
    for road in ROADS:
        _odd(rank, *road, device)
    # So that a run takes the GPU that this rank has, though it is not its own.
    os.environ.update(LOCAL_RANK=str(torch.cuda.current_device()), LOCAL_WORLD_SIZE="1")
    _padded(rank, device)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_cuda)])
def test_odd_batches_on_gpus(device: str) -> None:
    """All of the above, by ranks that are started once."""
    run_ranks(_all_on, WORLD, device, device=device, timeout_s=120)
