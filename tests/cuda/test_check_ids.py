"""check_ids on CUDA finds what the CPU's finds, thread by thread, and never waits."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cuda.places import places
from tests.ops.bags import bags

pytestmark = places


@settings(max_examples=60, deadline=None)
@given(bags(), st.sampled_from([0, 2, 100]))
def test_where_the_cpu_finds_it(op, case, fewer):
    rows = [max(0, len(case.tables[table]) - fewer) for table in case.features]
    blocks = len(case.options["block_order"] or [0])
    given = (case.ids, case.offsets, rows, blocks)
    assert torch.equal(op("check_ids")(*given), torch.ops.dmt.check_ids(*given))


def test_long_bags(op):
    ids = torch.arange(5000)
    offsets = torch.tensor([7, 3000, 3000, 5000])
    for rows in ([5000] * 3, [3000, 9, 4990], [10, 0, 0], [3000, 0, 0]):
        expected = torch.ops.dmt.check_ids(ids, offsets, rows)
        assert torch.equal(op("check_ids")(ids, offsets, rows, 1), expected)


def test_wild_offsets_read_nothing_else(op):
    found = op("check_ids")(torch.arange(4), torch.tensor([-5, 2, 900]), [1, 3], 1)
    assert found.tolist() == [2, 0, 0, 0, 1]
