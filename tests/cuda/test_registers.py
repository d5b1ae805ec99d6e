"""The check of what kernels use: it reads ptxas, and complains."""

from tests.cuda.registers import complaints, read_table, used

LOG = """
ptxas info    : Compiling entry function '_ZN3dmt4cuda63_GLOBAL__N__0_16_x_cu_04poolIfEEvT_' for 'sm_90a'
ptxas info    : Function properties for it
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 63 registers, used 1 barriers, 488 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN3dmt4cuda63_GLOBAL__N__0_16_x_cu_04poolIfEEvT_' for 'sm_80'
ptxas info    : Function properties for it
    0 bytes stack frame, 12 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 60 registers, used 1 barriers, 488 bytes cmem[0]
"""


def test_the_most_of_all_instances():
    assert used(LOG.replace("63_GLOBAL__N__0_16_x_cu_0", "12_GLOBAL__N_1")) == {"pool": (63, 12)}


def test_complaints():
    assert complaints({"pool": (63, 8)}, {"pool": (64, 8)}) == []
    assert complaints({"pool": (65, 0)}, {"pool": (64, 0)}) == ["pool uses 65 registers, the table says 64"]
    assert complaints({"pool": (65, 8)}, {"pull": (64, 0)}) == [
        "pull is in the table, but there is no such kernel",
        "pool uses 65 registers, the table says 0",
        "pool spills 8 bytes, the table says 0",
    ]


def test_the_table_is_readable():
    assert read_table()
