"""check_ids against a loop over bags."""

import pytest
import torch
from hypothesis import given, settings

from dmt_kernels.ops import check_ids
from dmt_kernels.ops.check_ids import MissingIds
from tests.ops.bags import bags, random_bags


def first_missing(ids, offsets, rows, blocks):
    samples = (len(offsets) - 1) // max(1, blocks * len(rows))
    found = []
    for bag in range(len(offsets) - 1):
        group, sample = divmod(bag, samples)
        block, feature = divmod(group, len(rows))
        for position, at in enumerate(range(int(offsets[bag]), int(offsets[bag + 1]))):
            if not 0 <= int(ids[at]) < rows[feature]:
                found.append((block, feature, sample, position))
    return MissingIds(len(found), *(found[0] if found else (-1, -1, -1, -1)))


@settings(max_examples=100, deadline=None)
@given(bags())
def test_equals_loop(batch):
    rows = [batch.tables[table].size(0) for table in batch.features]
    blocks = len(batch.options["block_order"] or [0])
    actual = check_ids(batch.ids, batch.offsets, rows, num_blocks=blocks)
    assert actual == first_missing(batch.ids, batch.offsets, rows, blocks)


def test_finds_the_first_across_threads():
    batch = random_bags(samples=60_000, longest=3)
    rows = [11, 7]
    assert check_ids(batch.ids, batch.offsets, rows).count == 0
    bad = batch.ids.clone()
    places = [len(bad) // 5, len(bad) // 2, len(bad) - 1]
    bad[places] = 11
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = check_ids(bad, batch.offsets, rows)
            assert found.count == 3
            bag = found.feature * 60_000 + found.sample
            assert int(batch.offsets[bag]) + found.position == places[0]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wild", [-(2**63), 2**63 - 1, -1], ids=["lowest", "highest", "minus one"])
def test_wild_ids(wild):
    ids = torch.tensor([0, wild])
    assert check_ids(ids, torch.tensor([0, 2]), [5]) == MissingIds(1, 0, 0, 0, 1)


def test_opcheck():
    torch.library.opcheck(torch.ops.dmt.check_ids, (*random_bags().args[1:], [11, 7]))


def test_bad_arguments():
    ids, offsets = torch.tensor([0]), torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match=r"^check_ids: num_blocks must be positive, got 0"):
        check_ids(ids, offsets, [5], num_blocks=0)
    with pytest.raises(RuntimeError, match=r"^check_ids: rows\[0\] is -5"):
        check_ids(ids, offsets, [-5])
    with pytest.raises(RuntimeError, match=r"^check_ids: the last offset is 1, but there are only 0 ids"):
        check_ids(ids[:0], offsets, [5])
