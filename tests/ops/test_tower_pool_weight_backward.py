"""The gradient of a tower module's weight against a lookup and a product, and its memory."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_kernels import _C
from dmt_kernels.ops import tower_pool_pooled_backward, tower_pool_weight_backward
from dmt_kernels.ops.reference.embedding_bag import embedding_bag
from tests.devices import on_devices
from tests.ops.bags import DTYPES, bags, random_bags
from tests.tolerances import TOLERANCES


def gradient(batch, out_width, dtype=None, seed=5):
    features, blocks = len(batch.features), len(batch.options.get("block_order") or [0])
    rows = (len(batch.offsets) - 1) // (features * blocks) * blocks if features else 0
    values = torch.randn(rows, out_width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype or batch.tables[0].dtype)


def ours(grad, batch, product_dtype=None):
    options = {name: value for name, value in batch.options.items() if name != "bounds"}
    return tower_pool_weight_backward(grad, *batch.args, **options, product_dtype=product_dtype)


def oracle(grad, batch, product_dtype=None):
    """The two steps, in float64 after the factors have been rounded."""
    dtype = batch.tables[0].dtype
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    pooled = embedding_bag(*batch.args, **{**batch.options, "out_dtype": sums, "bounds": "none"})
    factors = [factor.to(product_dtype or sums).double() for factor in (grad, pooled)]
    return (factors[0].t() @ factors[1]).to(dtype)


def assert_sums_close(actual, expected, terms):
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=2 * tolerance["rtol"], atol=2e-6 * max(1, terms))


@on_devices
@settings(max_examples=100, deadline=None)
@given(bags(), st.sampled_from([0, 1, 5, 14, 15, 33, 70]))
def test_equals_oracle(batch, out_width):
    grad = gradient(batch, out_width)
    assert_sums_close(ours(grad, batch), oracle(grad, batch), len(grad))


@on_devices
@pytest.mark.parametrize("samples", [1, 127, 128, 129, 255, 256, 257, 515])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("product_dtype", [None, torch.bfloat16], ids=["plain", "bfloat16 products"])
def test_samples_around_a_tile(samples, dtype, product_dtype):
    """Blocks with their own tiles, and slices that end inside a feature. Bags of one id: rounded factors are alike."""
    if product_dtype and dtype == torch.float64:
        return
    batch = random_bags(dims=(200, 9, 77), rows=(9, 4, 8), blocks=2, samples=samples, block_order=[1, 0], dtype=dtype)
    bag_count = 2 * 3 * samples
    batch.ids = torch.randint(4, (bag_count,), generator=torch.Generator().manual_seed(0))
    batch.offsets = torch.arange(bag_count + 1)
    grad = gradient(batch, 30)
    assert_sums_close(ours(grad, batch, product_dtype), oracle(grad, batch, product_dtype), 2 * samples)


@on_devices
def test_grad_of_another_dtype_and_layout():
    batch = random_bags(samples=40)
    grad = gradient(batch, 40, torch.bfloat16).t().contiguous().t()
    assert_sums_close(ours(grad, batch), oracle(grad.float(), batch), 40)


def test_missing_ids_contribute_nothing():
    batch = random_bags(samples=40, missing=True, weighted=True, pooling="mean")
    grad = gradient(batch, 7)
    assert_sums_close(ours(grad, batch), oracle(grad, batch), 40)


@pytest.mark.parametrize("product_dtype", [None, torch.bfloat16], ids=str)
def test_threads_change_no_bit(product_dtype):
    batch = random_bags(dims=(300, 40), rows=(50, 30), samples=301, blocks=2, weighted=True, block_order=[1, 0])
    grad = gradient(batch, 45)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(ours(grad, batch, product_dtype))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    ("grad", "product_dtype", "message"),
    [
        (torch.ones(3, 7), None, "grad must be [4, C], a row per row of the output, got [3, 7]"),
        (torch.ones(4), None, "grad must be [4, C], a row per row of the output, got [4]"),
        (torch.ones(4, 7).int(), None, "grad must be float64, float32, float16 or bfloat16, got int32"),
        (torch.ones(4, 7), torch.half, "product_dtype for float32 tables must be float32 or bfloat16, got float16"),
    ],
    ids=["rows", "dim", "dtype", "products"],
)
def test_bad_arguments(grad, product_dtype, message):
    with pytest.raises(RuntimeError) as error:
        tower_pool_weight_backward(grad, *random_bags().args, product_dtype=product_dtype)
    assert str(error.value) == f"tower_pool_weight_backward: {message}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooled_gradient(dtype):
    """In the dtype of sums; rounded factors lose what their dtype loses, sums nothing."""
    generator = torch.Generator().manual_seed(7)
    grad, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in ((70, 21), (21, 300)))
    for product_dtype in (None,) if dtype == torch.float64 else (None, torch.bfloat16):
        actual = tower_pool_pooled_backward(grad, weight, product_dtype=product_dtype)
        factors = [factor.to(product_dtype or dtype).double() for factor in (grad, weight)]
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_sums_close(actual, (factors[0] @ factors[1]).to(actual.dtype), 21)


def test_gradients_of_a_sum():
    """Autograd expands them: no two elements apart in memory."""
    batch, grad, weight = random_bags(samples=40), torch.ones(()).expand(40, 6), torch.rand(6, 8)
    assert_sums_close(ours(grad, batch), oracle(grad, batch), 40)
    assert_sums_close(tower_pool_pooled_backward(grad, weight), grad @ weight, 6)


def test_opcheck():
    batch = random_bags(weighted=True, features=[1, 0, 1])
    arguments = (gradient(batch, 3), *batch.args, batch.options["per_sample_weights"], [1, 0, 1], [0, 1, 0])
    torch.library.opcheck(torch.ops.dmt.tower_pool_weight_backward, arguments)


# Prints by how many bytes the peak of the process grew beyond each output. The pooled matrix would have 54 MB.
PEAK = """
from pathlib import Path
import torch
from dmt_kernels.ops import embedding_bag, tower_pool, tower_pool_weight_backward

def status(name):
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024

def growth(call):
    call()  # threads and their stacks
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is in use
    before = status("VmRSS")
    out = call()
    return status("VmHWM") - before - out.numel() * out.element_size()

torch.set_num_threads(2)
tables = [torch.rand(500, 128) for _ in range(26)]
ids, offsets = torch.randint(500, (26 * 4096,)), torch.arange(26 * 4096 + 1)
weight, grad = torch.rand(832, 26 * 128), torch.rand(4096, 832)
print(growth(lambda: embedding_bag(tables, ids, offsets) @ weight.t()))
for products in (None, torch.bfloat16):
    print(growth(lambda: tower_pool(tables, ids, offsets, weight, product_dtype=products)))
    print(growth(lambda: tower_pool_weight_backward(grad, tables, ids, offsets, product_dtype=products)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads and resets the peak through /proc")
def test_the_pooled_matrix_never_exists():
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}  # what is freed goes back to the system at once
    command = [sys.executable, "-c", PEAK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    two_steps, forward, backward, rounded_forward, rounded_backward = (int(line) / 1e6 for line in done.stdout.split())
    assert two_steps > 50  # or this test sees nothing
    assert max(forward, rounded_forward) < 8
    assert backward < 4096 * 840 * 4 / 1e6 + 8  # grad, turned
    word_bytes = 2 if _C.isa() == "avx512bf16" else 4
    assert rounded_backward < 4096 * 840 * word_bytes / 1e6 + 8
