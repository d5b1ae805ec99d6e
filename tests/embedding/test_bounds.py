"""Ids outside their tables: the same complaints and the same results on every road."""

import warnings

import pytest
import torch

from dmt_kernels.comm import build_mesh
from dmt_kernels.embedding import EmbeddingExchange, build_exchange
from dmt_kernels.ops import raise_missing_ids
from dmt_kernels.ops.id_exchange import reorder_features
from dmt_kernels.planner import partition_features, place
from dmt_kernels.spec import InputError, Jagged, Table, TableOptimizer, Topology
from tests.devices import on_cuda
from tests.ranks import run_ranks

TOPOLOGY = Topology(2, 1)
TABLES = (Table("users", 11, 8, ("user",)), Table("words", 300, 5, ("word", "title"), pooling="mean"))
SAMPLES = 3
BAD = {"user": 11, "word": -1, "title": 2**40}


def _exchange(bounds: str, distributed: bool) -> EmbeddingExchange:
    return build_exchange(
        "sptt",
        place(TABLES, partition_features(TABLES, TOPOLOGY.towers), TOPOLOGY),
        optimizer=TableOptimizer("sgd", lr=0.1),
        seed=1,
        mesh=build_mesh(TOPOLOGY.towers, TOPOLOGY.members, timeout_s=30) if distributed else None,
        bounds=bounds,
    )


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(InputError, match="bounds is 'error', 'warn' or 'none', not 'eror'"):
        _exchange("eror", distributed=False)


def _batch(exchange: EmbeddingExchange, bad_sample: int) -> Jagged:
    """Two ids a bag; in one sample, each feature's second id is bad."""
    ids = torch.arange(len(exchange.features) * SAMPLES * 2) % 11
    for f, feature in enumerate(exchange.features):
        ids[2 * (f * SAMPLES + bad_sample) + 1] = BAD[feature]
    return Jagged(ids, torch.arange(len(exchange.features) * SAMPLES + 1) * 2)


def _complaint(exchange: EmbeddingExchange, bad_sample: int) -> str:
    feature = exchange.features[0]
    table = exchange.plan.feature_tables[feature]
    return (
        f"id {BAD[feature]} of feature {feature!r} (sample {bad_sample}, position 1) "
        f"is outside table {table.name!r} with {table.rows} rows"
    )


def _in_all_modes(rank: int, distributed: bool) -> torch.Tensor:
    refusing = _exchange("error", distributed)
    for call in (refusing, refusing.prefetch) if distributed else (refusing,):
        with pytest.raises(InputError) as error:
            call(_batch(refusing, rank))
        assert str(error.value) == _complaint(refusing, rank)

    outputs = []
    for bounds in ("warn", "none"):
        exchange = _exchange(bounds, distributed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outputs.append(exchange(_batch(exchange, rank)).detach())
        complaints = [str(w.message) for w in caught if "missing" in str(w.message)]
        expected = f"3 ids count as missing; first: {_complaint(exchange, rank)}"
        assert complaints == ([expected] if bounds == "warn" else [])
        assert exchange.bad_ids == (3 if bounds == "warn" else 0)
    assert torch.equal(*outputs)
    return outputs[0]


def test_ranks_and_one_process_complain_and_compute_alike() -> None:
    for rank, output in enumerate(run_ranks(_in_all_modes, TOPOLOGY.world, True)):
        assert torch.equal(output, _in_all_modes(rank, False))


def test_bags_that_are_no_whole_number_of_samples() -> None:
    exchange = _exchange("error", False)
    with pytest.raises(InputError, match="^4 bags are no whole number of samples of 3 features$"):
        exchange(Jagged(torch.arange(4), torch.arange(5)))


@pytest.mark.parametrize("bounds", ["error", "warn", "none"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_cuda)])
def test_a_gpu_records_and_computes_what_a_cpu_refuses(device: str, bounds: str) -> None:
    here, there = _exchange("none", False), _exchange(bounds, False).to(device)
    batch = _batch(here, 0)
    moved = Jagged(batch.ids.to(device), batch.offsets.to(device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = there(moved)
    torch.testing.assert_close(output.cpu(), here(batch))
    output.sum().backward()
    if bounds != "error":
        return raise_missing_ids(device)
    with pytest.raises(RuntimeError, match="is out of range; ops on cuda met 6 such ids"):
        raise_missing_ids(device)
    for name, table in _exchange("none", False).state_dict().items():
        assert torch.equal(there.state_dict()[name].cpu(), table), "updated"


@pytest.mark.parametrize("split", ["whole", "rows"])
def test_what_is_not_taken_for_another_id_stays_whatever_the_offsets(split: str) -> None:
    """So an error on a GPU, where nobody looks at ids and offsets before the ops do, names what was given."""
    topology = Topology(1, 2)
    plan = place(TABLES, partition_features(TABLES, 1), topology, {"users": "whole", "words": split})
    exchange = build_exchange("flat", plan, optimizer=TableOptimizer("sgd"), seed=1)
    assert exchange.features == ("user", "word", "title")
    ids = torch.tensor([3, -7, 2**40, 300, -(2**40), 11, 11])
    rows = [11, 11, 11, 300, 300, 300, 300]
    narrow = exchange._narrowed(ids, torch.tensor([0, 1, 3, 4, 4, 7, 7]), 2)
    is_kept = [abs(id) < 2**31 and (split == "whole" or id < end) for id, end in zip(ids.tolist(), rows, strict=True)]
    assert narrow.tolist() == torch.where(torch.tensor(is_kept), ids, -1).tolist()
    for offsets in ([-9, 4, 10**12, 10**12, 0, 0, 8], [0] * 7, [50] * 7):
        narrow = exchange._narrowed(ids, torch.tensor(offsets), 2)
        assert ((narrow == ids) | (narrow == -1)).all()


def test_moved_features_are_read_inside_the_ids_whatever_the_offsets() -> None:
    for offsets in ([0, 9, 10**12], [5, 2, 9], [-4, 0, 2]):
        moved = reorder_features(Jagged(torch.arange(3), torch.tensor(offsets)), 2, [1, 0])
        assert set(moved.ids.tolist()) <= {0, 1, 2}
