"""Wire formats: the bytes of the oracle, errors within their bounds, nothing non-finite lost."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_kernels.comm import build_mesh
from dmt_kernels.ops import wire_decode, wire_encode
from dmt_kernels.ops.all_to_all import all_to_all
from dmt_kernels.ops.reference import wire_codec as oracle
from dmt_kernels.spec import WireFormat
from tests.devices import on_devices
from tests.ops.bags import DTYPES
from tests.ops.wire_rows import excess, random_rows, wire_rows
from tests.ranks import run_ranks

FORMATS = list(WireFormat)
SCALED = [f for f in FORMATS if f.is_scaled]
LARGEST = 3.18e38  # beyond, some formats round to inf
SEEDS = st.none() | st.integers(-(2**63), 2**63 - 1)
formats = pytest.mark.parametrize("wire_format", FORMATS, ids=lambda f: f.value)
scaled_formats = pytest.mark.parametrize("wire_format", SCALED, ids=lambda f: f.value)


def assert_same(actual, expected):
    """Equal in every bit, but for what a NaN looks like."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert torch.equal(actual.isnan(), expected.isnan())
    actual, expected = actual.nan_to_num(0, torch.inf, -torch.inf), expected.nan_to_num(0, torch.inf, -torch.inf)
    assert torch.equal(actual, expected) and torch.equal(actual.signbit(), expected.signbit())


def round_trip(x, wire_format, dtype=torch.float32, **options):
    return wire_decode(wire_encode(x, wire_format, **options), x.shape[1], wire_format, dtype)


@on_devices
@settings(max_examples=300, deadline=None)
@given(wire_rows(DTYPES), st.sampled_from(FORMATS), SEEDS, st.integers(0, 2**40), st.integers(0, 2**40))
def test_messages_have_the_bytes_of_the_oracle(x, wire_format, seed, step, first_row):
    options = {"seed": seed, "step": step, "first_row": first_row}
    message = wire_encode(x, wire_format, **options)
    assert message.dtype == torch.uint8 and message.is_contiguous()
    assert message.shape == (len(x), wire_format.row_bytes(x.shape[1]))
    assert torch.equal(message, oracle.wire_encode(x, wire_format, **options))


@on_devices
@settings(max_examples=200, deadline=None)
@given(wire_rows(), st.sampled_from(FORMATS), SEEDS, st.sampled_from(DTYPES))
def test_decoded_rows_equal_the_oracle(x, wire_format, seed, dtype):
    message = oracle.wire_encode(x, wire_format, seed=seed)
    actual = wire_decode(message, x.shape[1], wire_format, dtype)
    assert_same(actual, oracle.wire_decode(message, x.shape[1], wire_format, dtype))


@on_devices
@formats
def test_every_payload_decodes(wire_format):
    """All bit patterns, whoever wrote them."""
    every = torch.arange(2 ** (8 * min(2, wire_format.element_bytes)), dtype=torch.int32)
    if wire_format is WireFormat.FP32:
        payload = (every << 16).view(torch.uint8)
    else:
        payload = every.view(torch.uint8).view(-1, 4)[:, : wire_format.element_bytes].flatten()
    dim = len(payload) // wire_format.element_bytes
    message = torch.zeros(1, wire_format.row_bytes(dim), dtype=torch.uint8)
    message[0, : len(payload)] = payload
    if wire_format.is_scaled:
        message[0, -4:] = torch.tensor([0.375]).view(torch.uint8)
    for dtype in DTYPES:
        actual = wire_decode(message, dim, wire_format, dtype)
        assert_same(actual, oracle.wire_decode(message, dim, wire_format, dtype))


@on_devices
@settings(max_examples=400, deadline=None)
@given(wire_rows(finite=True), st.sampled_from(FORMATS), SEEDS)
def test_errors_are_within_their_bound(x, wire_format, seed):
    x = x.clamp(-LARGEST, LARGEST)
    decoded = round_trip(x, wire_format, seed=seed)
    assert excess(x, decoded, wire_format.error_bound(stochastic=seed is not None)) <= 1


# Rows on which a bound is met but for a few percent, term by term.
WORST = {
    (WireFormat.BF16, "of_value"): [1, 1 + 2**-8],
    (WireFormat.BF16, "least"): [2**-134, 1],
    (WireFormat.FP16, "of_value"): [1, 1 + 2**-11],
    (WireFormat.FP16, "of_maximum"): [2**14, 2**-25],
    (WireFormat.FP8, "of_value"): [225, 17],
    (WireFormat.FP8, "of_maximum"): [225, 2**-10],
    (WireFormat.INT8, "of_maximum"): [127, 0.5],
    (WireFormat.INT8, "least"): [2**-142, 2**-149],
}


@pytest.mark.parametrize(("wire_format", "term"), WORST, ids=lambda x: getattr(x, "value", x))
def test_half_a_bound_would_be_wrong(wire_format, term):
    x = torch.tensor([WORST[wire_format, term] * 20], dtype=torch.float32)
    bound = wire_format.error_bound()
    wrong = dataclasses.replace(bound, **{term: getattr(bound, term) / 2})
    decoded = round_trip(x, wire_format)
    assert excess(x, decoded, bound) <= 1 < excess(x, decoded, wrong)


def test_every_term_of_every_bound_has_its_worst_row():
    terms = {(f, t) for f in FORMATS for t, size in dataclasses.asdict(f.error_bound()).items() if size}
    assert terms == set(WORST)


@formats
@pytest.mark.parametrize("seed", [None, 5], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("dim", [1, 5, 16, 100])
def test_what_is_not_finite_stays_so(wire_format, seed, dim):
    values = [torch.inf, -torch.inf, torch.nan, -torch.nan]
    x = random_rows(0, 5, dim, 3, 9, torch.float32)
    for row, value in enumerate(values):
        x[row, row % dim] = value
    decoded = round_trip(x, wire_format, seed=seed)
    assert torch.equal(decoded[4], round_trip(x[4:], wire_format, seed=seed, first_row=4)[0])
    if wire_format.is_scaled:
        assert decoded[:4].isnan().all() and decoded[4].isfinite().all()
        return
    for row, value in enumerate(values):
        expected = torch.tensor(value)
        assert_same(decoded[row, row % dim], expected)
        assert decoded[row].isfinite().sum() == dim - 1


@formats
@pytest.mark.parametrize("seed", [None, 5], ids=["nearest", "stochastic"])
def test_large_numbers_do_not_overflow(wire_format, seed):
    x = torch.tensor([[LARGEST, -LARGEST, 65520.0, 1e6, 0.0] * 4])
    decoded = round_trip(x, wire_format, seed=seed)
    assert decoded.isfinite().all()
    torch.testing.assert_close(decoded[0, :2], x[0, :2], rtol=2**-3, atol=0)


def test_bfloat16_rounds_its_largest_numbers_as_ieee_does():
    x = torch.tensor([[3.3895313892515355e38, 3.39e38, 3.397e38, -3.4e38] * 8])
    assert torch.equal(round_trip(x, "bf16"), x.to(torch.bfloat16).float())


@formats
@pytest.mark.parametrize("seed", [None, 5], ids=["nearest", "stochastic"])
def test_rows_of_zeros(wire_format, seed):
    x = torch.zeros(3, 21)
    x[1] = -0.0
    decoded = round_trip(x, wire_format, seed=seed)
    assert torch.equal(decoded, x)
    if wire_format is not WireFormat.INT8:
        assert torch.equal(decoded.signbit(), x.signbit())


@scaled_formats
@pytest.mark.parametrize("power", [-149, -148, -140, -127, -126, -61, -60])
def test_rows_of_denormals_are_numbers(wire_format, power):
    """A maximum comes through, however small."""
    x = torch.zeros(2, 19, dtype=torch.float64)
    x[0, 3], x[1, 18] = 2.0**power, -(2.0**power)
    assert torch.equal(round_trip(x.float(), wire_format, torch.float64).sign(), x.sign())
    assert excess(x, round_trip(x.float(), wire_format, torch.float64), wire_format.error_bound()) <= 1


def test_fp32_carries_the_bits():
    bits = torch.randint(-(2**31), 2**31 - 1, (40, 37), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(round_trip(bits.view(torch.float32), "fp32").view(torch.int32), bits)


@formats
@pytest.mark.parametrize("seed", [None, 5], ids=["nearest", "stochastic"])
def test_threads_and_pieces_change_no_bit(wire_format, seed):
    x = random_rows(1, 3001, 37, 0, 10, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            message = wire_encode(x, wire_format, seed=seed, step=2, first_row=10)
            results.append((message, wire_decode(message, 37, wire_format)))
    finally:
        torch.set_num_threads(before)
    for message, decoded in results[1:]:
        assert torch.equal(message, results[0][0]) and torch.equal(decoded, results[0][1])
    pieces = [x[:1], x[1:1000], x[1000:]]
    rows = [10, 11, 1010]
    parts = [
        wire_encode(piece, wire_format, seed=seed, step=2, first_row=row)
        for piece, row in zip(pieces, rows, strict=True)
    ]
    assert torch.equal(torch.cat(parts), results[0][0])


@formats
def test_rows_and_columns_may_be_apart_in_memory(wire_format):
    wide = random_rows(2, 30, 50, 0, 5, torch.float32)
    for x in (wide[::3, 4:41], wide.t(), wide[:, ::2], wide[:1].expand(4, 50)):
        assert torch.equal(wire_encode(x, wire_format), wire_encode(x.contiguous(), wire_format))
    messages = torch.randint(0, 100, (9, 3 + wire_format.row_bytes(13)), dtype=torch.uint8)
    for message in (messages[::2, 3:], messages[:, 3:], messages.t().contiguous().t()[:, 3:]):
        expected = wire_decode(message.contiguous(), 13, wire_format)
        assert_same(wire_decode(message, 13, wire_format), expected)


def test_opcheck():
    x = random_rows(3, 7, 13, 0, 5, torch.float32)
    for wire_format in FORMATS:
        code = wire_format.code
        torch.library.opcheck(torch.ops.dmt.wire_encode, (x, code))
        torch.library.opcheck(torch.ops.dmt.wire_encode, (x.half(), code, 7, 3, 2))
        message = wire_encode(x, wire_format)
        torch.library.opcheck(torch.ops.dmt.wire_decode, (message, 13, code))
        torch.library.opcheck(torch.ops.dmt.wire_decode, (message, 13, code, torch.bfloat16))


def test_compiled_with_changing_sizes_and_steps():
    torch._dynamo.reset()

    def run(x, step):
        return wire_decode(wire_encode(x * 2, "fp8", seed=3, step=step), x.shape[1], "fp8") + 1

    compiled = torch.compile(run, fullgraph=True)
    for call, rows in enumerate([5, 6, 9]):
        x = random_rows(call, rows, 20 + call, 0, 5, torch.float32)
        with torch.compiler.set_stance("fail_on_recompile" if call == 2 else "default"):
            assert torch.equal(compiled(x, 10 + call), run(x, 10 + call))


def test_a_gradient_is_refused():
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="^wire_encode: input requires a gradient, but a message has none"):
        wire_encode(x, "bf16")
    with torch.no_grad():
        assert not wire_decode(wire_encode(x, "bf16"), 3, "bf16").requires_grad

    class Wire(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return round_trip(x, "bf16")

        @staticmethod
        def backward(ctx, grad):
            return round_trip(grad, "fp16", seed=1)

    Wire.apply(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wire_encode(torch.ones(3), "fp8"), "wire_encode: input must have 2 dimensions, got shape [3]"),
        (
            lambda: wire_encode(torch.ones(3, 4).int(), "fp8"),
            "wire_encode: input must be float64, float32, float16 or bfloat16, got int32",
        ),
        (
            lambda: torch.ops.dmt.wire_encode(torch.ones(3, 4), 5),
            "wire_encode: format must be 0 (fp32), 1 (bf16), 2 (fp16), 3 (fp8) or 4 (int8), got 5",
        ),
        (
            lambda: wire_decode(torch.ones(3, 12), 8, "fp8"),
            "wire_decode: message must be uint8, got float32",
        ),
        (
            lambda: wire_decode(torch.ones(3, 11, dtype=torch.uint8), 8, "fp8"),
            "wire_decode: message must be [N, 12] for 8 fp8 columns, got [3, 11]",
        ),
        (
            lambda: wire_decode(torch.ones(12, dtype=torch.uint8), 8, "fp8"),
            "wire_decode: message must be [N, 12] for 8 fp8 columns, got [12]",
        ),
        (
            lambda: wire_decode(torch.ones(3, 12, dtype=torch.uint8), -1, "fp8"),
            "wire_decode: dim must not be negative, got -1",
        ),
        (
            lambda: wire_decode(torch.ones(3, 12, dtype=torch.uint8), 8, "fp8", torch.int8),
            "wire_decode: dtype must be float64, float32, float16 or bfloat16, got ",
        ),
    ],
    ids=["input dim", "input dtype", "format", "message dtype", "row bytes", "message dim", "dim", "dtype"],
)
def test_bad_arguments(call, message):
    with pytest.raises(RuntimeError) as error:
        call()
    assert str(error.value).startswith(message)


def _exchange(rank):
    mesh = build_mesh(2, 2, timeout_s=30)
    dim, rows_to = 11, [[source, 0, 3, 1] for source in range(4)]
    rows_from = [rows_to[source][rank] for source in range(4)]
    for wire_format in FORMATS:
        sent = random_rows(rank, sum(rows_to[rank]), dim, 0, 4, torch.float32)
        size = wire_format.row_bytes(dim)
        message = wire_encode(sent, wire_format, seed=rank)
        received, sent_sizes = ([n * size for n in counts] for counts in (rows_from, rows_to[rank]))
        arrived = all_to_all(message.flatten(), received, sent_sizes, mesh.flat.group_name)
        decoded = wire_decode(arrived.view(-1, size), dim, wire_format).split(rows_from)
        for source in range(4):
            theirs = random_rows(source, sum(rows_to[source]), dim, 0, 4, torch.float32)
            first = sum(rows_to[source][:rank])
            expected = round_trip(theirs, wire_format, seed=source)[first : first + rows_from[source]]
            assert torch.equal(decoded[source], expected)


@pytest.mark.distributed
def test_messages_travel_by_all_to_all_with_splits_of_rows():
    run_ranks(_exchange, 4)
