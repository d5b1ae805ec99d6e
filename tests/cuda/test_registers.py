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


def log_of(*kernels):
    return "".join(LOG.replace("63_GLOBAL__N__0_16_x_cu_04poolIfEEvT_", f"12_GLOBAL__N_1{name}") for name in kernels)


def test_the_most_of_all_architectures():
    assert used(log_of("4poolIfEEvT_")) == {"pool<float>": (63, 12)}


def test_names_of_instances():
    names = ["4copyEv", "3addINS0_4HalfELi128EEEvi", "3mixINS1_4RowsIfEEfLNS1_4KindE1EEEvNS1_4RowsIfEE"]
    assert list(used(log_of(*names))) == ["copy", "add<Half,128>", "mix<Rows<float>,float,(Kind)1>"]


def test_an_instance_belongs_to_the_first_line_that_names_it():
    kernels = {"pool<float,Half>": (63, 8), "pool<Half,Half>": (40, 0), "pool<Half,float>": (41, 0), "pull": (9, 0)}
    table = {"pool<float,*>": (63, 8), "pool<*,float>": (41, 0), "pool": (40, 0), "pull": (9, 0)}
    assert complaints(kernels, table) == []
    kernels["pool<Half,float>"] = (42, 4)
    assert complaints(kernels, table) == [
        "pool<*,float> uses 42 registers, the table says 41",
        "pool<*,float> spills 4 bytes, the table says 0",
    ]


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
