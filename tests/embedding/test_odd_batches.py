"""Batches and plans at their edges: ranks without tables, one sample or none, chunks that do not divide, padding."""

import dataclasses

import pytest
import torch

from dmt_kernels.comm import all_reduce_flat, build_mesh
from dmt_kernels.embedding import build_exchange
from dmt_kernels.planner import partition_features, place
from dmt_kernels.spec import Jagged, Plan, Table, TableOptimizer, Topology
from dmt_kernels.towers import DLRMTower, TowerModule
from dmt_kernels.train.assemble import build_model, make_loader, set_up
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.step import TrainStep
from tests.ranks import run_ranks

pytestmark = pytest.mark.distributed
WORLD = 4
TABLES = (Table("wide", 50, 8, ("a", "b")), Table("narrow", 9, 4, ("c",)))  # a table for each tower of two ranks
SGD = TableOptimizer("sgd", lr=0.1)


def _sparse(samples: int, first: int, last: int, features: int, *, empty: bool) -> Jagged:
    """Samples ``[first, last)`` of a global batch: 0 to 3 ids a bag, or none at all."""
    generator = torch.Generator().manual_seed(samples)
    lengths = torch.randint(0, 4, (features, samples), generator=generator) * (not empty)
    ids = torch.randint(0, 9, (features, samples, 3), generator=generator)
    mine = lengths[:, first:last]
    values = ids[:, first:last][torch.arange(3) < mine.unsqueeze(2)]
    return Jagged(values, torch.nn.functional.pad(mine.flatten().cumsum(0), (1, 0)))


def _tower_modules(plan: Plan) -> dict[int, TowerModule]:
    return {t: DLRMTower(plan.tower_dims(t), 10, c=1, p=0, name=f"tower{t}").double() for t in range(2)}


def _odd(rank: int, kind: str, splits: dict[str, str], placement: str | None) -> None:
    """``placement``: of linear tower modules, if there are any."""
    plan = place(TABLES, partition_features(TABLES, 2), Topology(2, 2), splits)
    mesh = build_mesh(2, 2, timeout_s=10)
    options = {"optimizer": SGD, "seed": 3, "dtype": torch.float64}
    wired = build_exchange(
        kind,
        plan,
        mesh=mesh,
        chunks=4,
        tower_modules=_tower_modules(plan) if placement else None,
        placement=placement or "member",
        **options,
    )
    local = build_exchange(kind, plan, tower_modules=_tower_modules(plan) if placement else None, **options)
    for samples, empty in ((1, False), (4, False), (0, False), (3, True), (7, False), (6, False)):
        whole = _sparse(WORLD * samples, 0, WORLD * samples, 3, empty=empty)
        expected = local(whole)
        mine = slice(rank * samples, (rank + 1) * samples)
        actual = wired(_sparse(WORLD * samples, mine.start, mine.stop, 3, empty=empty))
        assert actual.shape == (samples, 20)
        torch.testing.assert_close(actual, expected[mine], rtol=0, atol=1e-12)
        (expected**2).sum().backward()
        (actual**2).sum().backward()
    expected_state = local.state_dict()
    for name, value in wired.state_dict().items():
        if name in expected_state:
            torch.testing.assert_close(value, expected_state[name], rtol=0, atol=1e-12)
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
            torch.testing.assert_close(whole[name], p.grad, rtol=0, atol=1e-10)


# Ranks without tables, a rank with replicas alone, and rows.
SPLITS = [{"wide": "whole", "narrow": "whole"}, {"wide": "replicated", "narrow": "whole"}, {"wide": "rows"}]


@pytest.mark.parametrize(
    ("kind", "splits", "placement"),
    [
        *(("flat", splits, None) for splits in SPLITS),
        *(("sptt", splits, None) for splits in SPLITS),
        ("sptt", SPLITS[0], "member"),
        ("sptt", SPLITS[0], "owner"),
        ("sptt", {}, "owner"),
    ],
    ids=str,
)
def test_odd_batches_are_those_of_one_process(kind: str, splits: dict[str, str], placement: str | None) -> None:
    run_ranks(_odd, WORLD, kind, splits, placement, timeout_s=40)


def _padded(rank: int) -> None:
    """An epoch whose last batch has two samples of 32, in ranks and, on rank 0, in one process too."""
    config = TrainConfig(
        data="synthetic:1000", towers=2, members=2, batch_size=32, embedding_dim=4, chunks=3, dtype="float64"
    )
    mesh = build_mesh(2, 2, timeout_s=10)
    runs = [(config, mesh)]
    if rank == 0:
        runs.append((dataclasses.replace(config, local=True, chunks=1), None))
    losses = []
    for options, ranks in runs:
        setup = set_up(options)
        step = TrainStep(build_model(setup, ranks), ranks, optimizer="adam", lr=0.01)
        batches = list(make_loader(setup, "train", ranks, torch.device("cpu")))
        assert batches[-1].global_samples == setup.dataset.rows("train") % 32 != 0
        losses.append(torch.stack([step(batch) for batch in batches]))
    if rank == 0:
        torch.testing.assert_close(*losses, rtol=0, atol=1e-10)


def test_a_padded_last_batch_in_chunks() -> None:
    run_ranks(_padded, WORLD, timeout_s=40)
