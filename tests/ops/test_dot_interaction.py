"""Dot products of pairs of features against the oracle: values, gradients, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_kernels.ops import dot_interaction
from dmt_kernels.ops.reference import dot_interaction as oracle
from tests.devices import on_devices
from tests.ops.bags import DTYPES
from tests.tolerances import TOLERANCES

OP = torch.ops.dmt.dot_interaction.default


@st.composite
def problems(draw):
    dim, samples = draw(st.integers(1, 40)), draw(st.integers(0, 40))
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    gap = draw(st.sampled_from([0, 0, 3]))
    blocks = []
    for count in counts:
        wide = torch.rand(samples, count * dim + gap, generator=generator, dtype=torch.float64) - 0.5
        blocks.append(wide.to(dtype)[:, : count * dim])
    return blocks, dim, draw(st.booleans())


def wide_tolerance(dtype, terms):
    """Of sums that are rounded once, against the oracle's in double."""
    return {"rtol": 4 * TOLERANCES[dtype]["rtol"], "atol": (1 + terms) * TOLERANCES[dtype]["rtol"] / 4}


@on_devices
@settings(max_examples=200, deadline=None)
@given(problems())
def test_equals_the_oracle(problem):
    blocks, dim, with_first = problem
    out = dot_interaction(blocks, dim, with_first=with_first)
    expected = oracle.dot_interaction([block.double() for block in blocks], dim, with_first)
    assert out.dtype == blocks[0].dtype and out.is_contiguous()
    torch.testing.assert_close(out.double(), expected, **wide_tolerance(out.dtype, dim))
    if with_first:
        assert torch.equal(out[:, : blocks[0].shape[1]], blocks[0])


@on_devices
@settings(max_examples=200, deadline=None)
@given(problems())
def test_gradients_equal_the_oracle(problem):
    blocks, dim, with_first = problem
    leaves = [block.detach().clone().requires_grad_() for block in blocks]
    out = dot_interaction(leaves, dim, with_first=with_first)
    grad = torch.rand(out.shape, dtype=torch.float64).sub(0.5).to(out.dtype)
    out.backward(grad)
    expected = oracle.dot_interaction_backward(grad.double(), [block.double() for block in blocks], dim, with_first)
    features = sum(block.shape[1] for block in blocks) // dim
    for leaf, wanted in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad.double(), wanted, **wide_tolerance(out.dtype, features))


@pytest.mark.parametrize("with_first", [False, True])
def test_oracle_backward_is_autograd_of_the_oracle(with_first):
    blocks = [torch.randn(3, width, dtype=torch.float64, requires_grad=True) for width in (4, 8)]
    out = oracle.dot_interaction(blocks, 4, with_first)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, blocks, grad)
    for actual, wanted in zip(oracle.dot_interaction_backward(grad, blocks, 4, with_first), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def test_opcheck_and_gradcheck():
    blocks = [torch.randn(3, 4, requires_grad=True), torch.randn(3, 8, requires_grad=True)]
    torch.library.opcheck(OP, (blocks, 4, True))
    torch.library.opcheck(OP, (blocks, 4))
    one, other = (torch.randn(19, width, dtype=torch.float64, requires_grad=True) for width in (6, 21))
    assert torch.autograd.gradcheck(lambda a, b: dot_interaction([a, b], 3, with_first=True), (one, other))


def test_threads_do_not_matter():
    blocks = [torch.randn(2000, 20), torch.randn(2000, 200)]
    grad = torch.randn(2000, 20 + 55)
    results = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            leaves = [block.clone().requires_grad_() for block in blocks]
            out = dot_interaction(leaves, 20, with_first=True)
            out.backward(grad)
        finally:
            torch.set_num_threads(before)
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_not_finite_stays_with_its_sample():
    x = torch.ones(5, 3 * 4)
    x[2, 1] = torch.nan
    out = dot_interaction([x], 4)
    assert out[2].isnan().tolist() == [True, True, False]
    assert torch.equal(out[[0, 1, 3, 4]], torch.full((4, 3), 4.0))


def test_second_derivative_is_refused():
    x = torch.randn(2, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match="dot_interaction can be differentiated only once"):
        torch.autograd.grad(torch.autograd.grad(dot_interaction([x], 3).sum(), x, create_graph=True)[0].sum(), x)


@pytest.mark.parametrize(
    ("blocks", "dim", "message"),
    [
        ([], 4, "blocks must not be empty"),
        ([torch.zeros(2, 4)], 0, "dim must be positive, got 0"),
        ([torch.zeros(8)], 4, r"blocks\[0\] must have 2 dimensions, got shape \[8\]"),
        ([torch.zeros(2, 4), torch.zeros(3, 4)], 4, r"blocks\[1\] must have 2 rows like blocks\[0\], got 3"),
        ([torch.zeros(2, 4), torch.zeros(2, 6)], 4, r"blocks\[1\] must be whole features of 4 columns"),
        ([torch.zeros(2, 4), torch.zeros(2, 4).half()], 4, r"blocks\[1\] must be float32 like blocks\[0\]"),
        ([torch.zeros(2, 4, dtype=torch.int64)], 4, r"blocks\[0\] must be float64, float32, float16 or bfloat16"),
    ],
)
def test_refusals(blocks, dim, message):
    with pytest.raises(RuntimeError, match=f"dot_interaction: {message}"):
        dot_interaction(blocks, dim)


def test_refuses_a_gradient_of_another_shape():
    with pytest.raises(RuntimeError, match=r"dot_interaction_backward: grad must be \[2, 1\], as the output is"):
        torch.ops.dmt.dot_interaction_backward(torch.zeros(2, 3), [torch.zeros(2, 8)], 4)


def test_cuda_has_it():
    """By the oracle."""
    for name in ("dot_interaction", "dot_interaction_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dmt::{name}", "CUDA")
