"""``id_exchange`` against a gather of everything by pickles, and ``IdExchange`` against both."""

import dataclasses
import itertools

import pytest
import torch
import torch.distributed as dist

from dmt_kernels import ops
from dmt_kernels.comm import build_mesh, traffic
from dmt_kernels.ops.bag_arguments import on_device
from dmt_kernels.ops.id_codec import HEADER_BYTES
from dmt_kernels.ops.id_exchange import reorder_features
from dmt_kernels.spec import InputError, Jagged
from tests.devices import devices
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


def _to(device: str, sparse: Jagged) -> Jagged:
    weights = None if sparse.weights is None else sparse.weights.to(device)
    return Jagged(sparse.ids.to(device), sparse.offsets.to(device), weights)


def _bags(sparse: Jagged, values: torch.Tensor) -> list[list]:
    return [values[a:b].tolist() for a, b in zip(sparse.offsets[:-1], sparse.offsets[1:], strict=True)]


def _routes(rank: int, group: str, rows: int = 1000) -> ops.IdRoutes:
    return ops.IdRoutes((rows,) * FEATURES, tuple(map(tuple, ROUTES)), rank, group)


def _assert_same(actual: Jagged, expected: Jagged) -> None:
    assert torch.equal(actual.ids, expected.ids) and torch.equal(actual.offsets, expected.offsets)
    assert (actual.weights is None) == (expected.weights is None)
    if actual.weights is not None and expected.weights is not None:
        assert torch.equal(actual.weights, expected.weights)


def _every_kind(rank: int) -> None:
    group = build_mesh(WORLD, 1, timeout_s=30).ids.group_name
    for kind in itertools.product((torch.int32, torch.int64), (False, True), (0, 1, SAMPLES)):
        _exchange(rank, group, *kind)


def _exchange(rank: int, group: str, id_dtype: torch.dtype, weighted: bool, samples: int) -> None:
    sparse = _sparse(rank, id_dtype, weighted, samples)
    received = ops.id_exchange(sparse, FEATURES, ROUTES, rank, group)
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


def test_bags_arrive_source_major() -> None:
    run_ranks(_every_kind, WORLD)


def _counted(rank: int) -> dict:
    mesh = build_mesh(WORLD, 1, timeout_s=30)
    sparse = _sparse(rank, torch.int32, False, SAMPLES)
    traffic.reset()
    ops.id_exchange(sparse, FEATURES, ROUTES, rank, mesh.ids.group_name)
    return traffic.sent_bytes()


def test_traffic_is_what_was_sent() -> None:
    for rank, sent in enumerate(run_ranks(_counted, WORLD)):
        lengths = _sparse(rank, torch.int32, False, SAMPLES).lengths().view(FEATURES, SAMPLES)
        batch = 16  # samples, and whether they have weights
        per_rank = [batch + sum(4 * SAMPLES + 4 * int(lengths[f].sum()) for f in route) for route in ROUTES]
        assert sent["ids", "self"] == per_rank[rank]
        assert sent["ids", "peer"] == sum(per_rank) - per_rank[rank]
        assert ("ids", "tower") not in sent or sent["ids", "tower"] == 0


def test_select_features_keeps_everything_when_nothing_moves() -> None:
    sparse = _sparse(0, torch.int64, True, SAMPLES)
    assert ops.select_features(sparse, FEATURES, range(FEATURES)) is sparse


def _one_chunk(rank: int, weighted: bool) -> None:
    mesh = build_mesh(WORLD, 1, timeout_s=30)
    for samples in (0, 1, SAMPLES):
        for id_dtype in (torch.int32, torch.int64):
            sparse = _sparse(rank, id_dtype, weighted, samples)
            expected = ops.id_exchange(sparse, FEATURES, ROUTES, rank, mesh.ids.group_name)
            received = ops.IdExchange(sparse, _routes(rank, mesh.ids.group_name)).wait()
            assert received.chunks == (received.bags,)
            assert received.bags.ids.dtype == torch.int32
            _assert_same(received.bags, dataclasses.replace(expected, ids=expected.ids.to(torch.int32)))


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_one_chunk_is_id_exchange(weighted: bool) -> None:
    run_ranks(_one_chunk, WORLD, weighted)


def _chunks(rank: int, chunks: int, rows: int, device: str) -> None:
    mesh = build_mesh(WORLD, 1, device=device, timeout_s=30)
    samples = 2 * chunks
    sparse = _to(device, _sparse(rank, torch.int64, True, samples))
    received = ops.IdExchange(sparse, _routes(rank, mesh.ids.group_name, rows), chunks=chunks).wait()
    assert received.bags.ids.dtype == (torch.int64 if rows >= 2**31 else torch.int32)
    everyone: list = [None] * WORLD
    assert sparse.weights is not None
    dist.all_gather_object(everyone, (_bags(sparse, sparse.ids), _bags(sparse, sparse.weights)))
    in_chunk = [range(2 * c, 2 * c + 2) for c in range(chunks)]
    orders = [(received.bags, in_chunk)] + [(received.chunks[c], [in_chunk[c]]) for c in range(chunks)]
    assert len(received.chunks) == chunks
    for actual, order in orders:
        assert actual.weights is not None
        for values, which in ((actual.ids, 0), (actual.weights, 1)):
            assert _bags(actual, values) == [
                source[which][feature * samples + b]
                for source in everyone
                for c in order
                for feature in ROUTES[rank]
                for b in c
            ]


@pytest.mark.parametrize("chunks", [2, 3])
@pytest.mark.parametrize("rows", [1000, 2**33], ids=["int32", "int64"])
@devices
def test_chunks_against_a_gather(chunks: int, rows: int, device: str) -> None:
    run_ranks(_chunks, WORLD, chunks, rows, device, device=device)


def _several_on_their_way(rank: int, device: str) -> None:
    mesh = build_mesh(WORLD, 1, device=device, timeout_s=30)
    routes = _routes(rank, mesh.ids.group_name)
    batches = [
        _to(device, _sparse(WORLD * i + rank, torch.int64, False, samples)) for i, samples in enumerate([4, 1, 7])
    ]
    expected = [ops.id_exchange(sparse, FEATURES, ROUTES, rank, mesh.ids.group_name) for sparse in batches]
    first, second, third = [ops.IdExchange(sparse, routes) for sparse in batches]
    second.advance()
    second.advance()
    for exchange, right in ((third, expected[2]), (second, expected[1]), (first, expected[0])):
        received = exchange.wait()
        _assert_same(received.bags, dataclasses.replace(right, ids=right.ids.to(torch.int32)))
        assert exchange.wait() is received


@devices
def test_several_exchanges_are_on_their_way_at_once(device: str) -> None:
    run_ranks(_several_on_their_way, WORLD, device, device=device)


def _unlike(rank: int) -> list[str]:
    """Batches of which one is unlike, again and again: what every rank says, and that all goes on after it."""
    mesh = build_mesh(WORLD, 1, timeout_s=30)
    routes = _routes(rank, mesh.ids.group_name)
    said = []
    for odd, samples, weighted in ((1, 6, False), (2, 0, False), (1, 40, False), (0, SAMPLES, True)):
        batch = (samples, weighted) if rank == odd else (SAMPLES, False)
        with pytest.raises(InputError) as raised:
            ops.IdExchange(_sparse(rank, torch.int64, batch[1], batch[0]), routes).wait()
        said.append(str(raised.value))
        for like in (SAMPLES, SAMPLES, 2):
            sparse = _sparse(rank, torch.int64, False, like)
            received = ops.IdExchange(sparse, routes).wait()
            expected = ops.id_exchange(sparse, FEATURES, ROUTES, rank, mesh.ids.group_name)
            _assert_same(received.bags, dataclasses.replace(expected, ids=expected.ids.to(torch.int32)))
    return said


def test_unlike_batches_are_told_on_every_rank() -> None:
    said = run_ranks(_unlike, WORLD)
    assert said[0] == said[1] == said[2]
    assert [sentence.partition(":")[0] for sentence in said[0]] == [
        "rank 1 has a batch of 6 samples, rank 0 of 5 samples",
        "rank 2 has a batch of 0 samples, rank 0 of 5 samples",
        "rank 1 has a batch of 40 samples, rank 0 of 5 samples",
        "rank 1 has a batch of 5 samples, rank 0 of 5 samples with weights",
    ]


def _unlike_for_the_op(rank: int) -> list[str]:
    mesh = build_mesh(WORLD, 1, timeout_s=30)
    said = []
    for weighted, samples in ((False, SAMPLES + (rank == 1)), (rank == 2, SAMPLES)):
        with pytest.raises(InputError) as raised:
            ops.id_exchange(_sparse(rank, torch.int64, weighted, samples), FEATURES, ROUTES, rank, mesh.ids.group_name)
        said.append(str(raised.value).partition(":")[0])
    return said


def test_the_op_tells_unlike_batches_on_every_rank() -> None:
    assert (
        run_ranks(_unlike_for_the_op, WORLD)
        == [
            [
                "rank 1 has a batch of 6 samples, rank 0 of 5 samples",
                "rank 2 has a batch of 5 samples with weights, rank 0 of 5 samples",
            ]
        ]
        * WORLD
    )


def _sent_in_small_messages(rank: int) -> dict:
    mesh = build_mesh(WORLD, 1, timeout_s=30)
    routes = _routes(rank, mesh.ids.group_name)
    ops.IdExchange(_sparse(rank, torch.int64, False, SAMPLES), routes).wait()  # announces so many samples
    for weighted in (True, False):
        traffic.reset()
        ops.IdExchange(_sparse(rank, torch.int64, weighted, SAMPLES), routes).wait()
        if weighted:
            with_weights = traffic.sent_bytes()
    return {"weighted": with_weights, "unweighted": traffic.sent_bytes()}


def test_traffic_of_small_messages_is_what_was_sent() -> None:
    for rank, sent in enumerate(run_ranks(_sent_in_small_messages, WORLD)):
        lengths = _sparse(rank, torch.int64, False, SAMPLES).lengths().view(FEATURES, SAMPLES)
        for name, item_bytes in (("unweighted", 2), ("weighted", 6)):
            per_rank = [
                HEADER_BYTES + sum(SAMPLES + item_bytes * int(lengths[f].sum()) for f in route) for route in ROUTES
            ]
            assert sent[name]["ids", "self"] == per_rank[rank]
            assert sent[name]["ids", "peer"] == sum(per_rank) - per_rank[rank]


def _refusing(rank: int) -> list:
    mesh = build_mesh(WORLD, 1, timeout_s=30)
    routes = _routes(rank, mesh.ids.group_name, rows=10)
    sparse = _sparse(rank, torch.int64, False, SAMPLES)
    seen: list = []

    def refuse(missing: ops.MissingIds) -> None:
        seen.append(missing)
        raise ValueError

    traffic.reset()
    with pytest.raises(ValueError):
        ops.IdExchange(sparse, routes, refuse)
    assert not traffic.sent_bytes()
    assert seen == [ops.check_ids(sparse.ids, sparse.offsets, routes.rows)]
    received = ops.IdExchange(sparse, routes, seen.append).wait().bags  # they count as missing
    assert len(seen) == 2
    expected = ops.id_exchange(sparse, FEATURES, ROUTES, rank, mesh.ids.group_name)
    ids = torch.where((expected.ids >= 0) & (expected.ids < 10), expected.ids, -1)
    _assert_same(received, dataclasses.replace(expected, ids=ids.to(torch.int32)))
    return seen


def test_ids_outside_their_tables_are_told_before_anything_is_sent() -> None:
    assert all(seen[0].count > 0 for seen in run_ranks(_refusing, WORLD))


def test_constants_that_are_made_in_inference_mode_serve_training() -> None:
    with torch.inference_mode():
        order = on_device((2, 0, 1), torch.device("cpu"))
    weight = torch.randn(2, 3, requires_grad=True)
    weight.index_select(1, order).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("samples", [0, 1, SAMPLES])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_features_in_another_order_are_those_selected(samples: int, weighted: bool) -> None:
    sparse = _sparse(3, torch.int32, weighted, samples)
    for route in ([3, 1, 0, 2], [0, 1, 2, 3]):
        moved, expected = reorder_features(sparse, FEATURES, route), ops.select_features(sparse, FEATURES, route)
        assert torch.equal(moved.ids, expected.ids) and torch.equal(moved.offsets, expected.offsets)
        assert moved.ids.dtype == torch.int32
        assert moved.weights is None or torch.equal(moved.weights, expected.weights)
