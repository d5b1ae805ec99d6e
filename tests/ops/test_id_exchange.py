"""``id_exchange`` against a gather of everything by pickles."""

import pytest
import torch
import torch.distributed as dist

from dmt_kernels import ops
from dmt_kernels.comm import build_mesh, traffic
from dmt_kernels.spec import Jagged
from tests.ranks import run_ranks

WORLD, FEATURES, SAMPLES = 3, 4, 5
ROUTES = [[2, 0], [], [1, 2, 3, 2]]  # a rank without features; a feature on two ranks and twice on one


def _sparse(rank: int, id_dtype: torch.dtype, weighted: bool, samples: int) -> Jagged:
    generator = torch.Generator().manual_seed(rank)
    lengths = torch.randint(0, 4, (FEATURES * samples,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    total = int(offsets[-1])
    ids = torch.randint(-1, 1000, (total,), generator=generator).to(id_dtype)
    return Jagged(ids, offsets, torch.rand(total, generator=generator) if weighted else None)


def _bags(sparse: Jagged, values: torch.Tensor) -> list[list]:
    return [values[a:b].tolist() for a, b in zip(sparse.offsets[:-1], sparse.offsets[1:], strict=True)]


def _exchange(rank: int, id_dtype: torch.dtype, weighted: bool, samples: int) -> None:
    mesh = build_mesh(WORLD, 1, timeout_s=30)
    sparse = _sparse(rank, id_dtype, weighted, samples)
    received = ops.id_exchange(sparse, FEATURES, ROUTES, rank, mesh.ids.group_name)
    everyone: list = [None] * WORLD
    dist.all_gather_object(everyone, _bags(sparse, sparse.ids))
    expected = [bags[feature * samples + b] for bags in everyone for feature in ROUTES[rank] for b in range(samples)]
    assert received.ids.dtype == id_dtype
    assert received.offsets.numel() == WORLD * len(ROUTES[rank]) * samples + 1
    assert _bags(received, received.ids) == expected
    assert (received.weights is not None) == weighted
    if weighted:
        assert sparse.weights is not None and received.weights is not None
        sources = [_sparse(g, id_dtype, True, samples) for g in range(WORLD)]
        expected_weights = [
            _bags(source, source.weights)[feature * samples + b]  # type: ignore[arg-type]
            for source in sources
            for feature in ROUTES[rank]
            for b in range(samples)
        ]
        assert _bags(received, received.weights) == expected_weights


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("samples", [0, 1, SAMPLES])
def test_bags_arrive_source_major(id_dtype: torch.dtype, weighted: bool, samples: int) -> None:
    run_ranks(_exchange, WORLD, id_dtype, weighted, samples)


def _counted(rank: int) -> dict:
    mesh = build_mesh(WORLD, 1, timeout_s=30)
    sparse = _sparse(rank, torch.int32, False, SAMPLES)
    traffic.reset()
    ops.id_exchange(sparse, FEATURES, ROUTES, rank, mesh.ids.group_name)
    return traffic.sent_bytes()


def test_traffic_is_what_was_sent() -> None:
    for rank, sent in enumerate(run_ranks(_counted, WORLD)):
        lengths = _sparse(rank, torch.int32, False, SAMPLES).lengths().view(FEATURES, SAMPLES)
        per_rank = [sum(4 * SAMPLES + 4 * int(lengths[f].sum()) for f in route) for route in ROUTES]
        assert sent["ids", "self"] == per_rank[rank]
        assert sent["ids", "peer"] == sum(per_rank) - per_rank[rank]
        assert ("ids", "tower") not in sent or sent["ids", "tower"] == 0


def test_select_features_keeps_everything_when_nothing_moves() -> None:
    sparse = _sparse(0, torch.int64, True, SAMPLES)
    assert ops.select_features(sparse, FEATURES, range(FEATURES)) is sparse
