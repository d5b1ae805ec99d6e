"""check_ids against a loop over bags."""

import sys

import pytest
import torch
from hypothesis import given, settings

from dmt_kernels.ops import MissingIds, MissingIdWatch, check_ids, raise_missing_ids
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


class Recorder:
    """What a device has recorded, and messages that arrive when they are let."""

    def __init__(self, monkeypatch):
        self.record, self.arrived = torch.zeros(6, dtype=torch.int64), False
        module = sys.modules["dmt_kernels.ops.check_ids"]  # the package has a function of that name
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(module, "_take", lambda device: self.take())
        monkeypatch.setattr(module, "_ask", lambda device: (self.take(), lambda: self.arrived))

    def take(self):
        taken, self.record = self.record, torch.zeros(6, dtype=torch.int64)
        return taken

    def meet(self, id):
        self.record = torch.tensor([self.record[0] + 1, id, 2, 3, 4, 0])


def test_what_a_device_recorded_is_raised_at_a_later_step(monkeypatch):
    device = Recorder(monkeypatch)
    watch = MissingIdWatch(torch.device("cuda"))
    watch.poll()
    device.meet(77)
    for _ in range(3):  # the first answer is on its way: nobody waits, nothing is lost
        watch.poll()
    device.arrived = True
    watch.poll()
    with pytest.raises(
        RuntimeError, match="^id 77 of table 2, feature 3, sample 4, block 0 is out of range; ops on cu"
    ):
        watch.poll()
    for _ in range(3):
        watch.poll()


def test_where_the_host_waits_all_of_it_is_raised(monkeypatch):
    device = Recorder(monkeypatch)
    watch = MissingIdWatch(torch.device("cuda"))
    for asks in (False, True):
        device.meet(5)
        if asks:
            watch.poll()
        with pytest.raises(RuntimeError, match="^id 5 of"):
            watch.wait()
        watch.wait()
    device.meet(5)
    watch.poll()
    device.meet(6)
    with pytest.raises(RuntimeError, match=r"^id 5 of .* met 2 such ids$"):
        watch.wait()
    watch.wait()
    device.meet(6)
    with pytest.raises(RuntimeError, match="^id 6 of"):
        raise_missing_ids("cuda")


def test_the_cpu_has_nothing_to_watch():
    watch = MissingIdWatch(torch.device("cpu"))
    watch.poll()
    watch.wait()
    raise_missing_ids("cpu")
