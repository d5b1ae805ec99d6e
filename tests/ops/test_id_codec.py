"""The messages of an id exchange: the kernel's against the oracle's, byte for byte, and what is decoded from them."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmt_kernels import ops
from dmt_kernels.ops.reference import id_codec as oracle
from dmt_kernels.spec import Jagged

ROWS = [0, 1, 255, 256, 65_535, 65_536, 2**31 - 1, 2**32 - 1, 2**40]


@dataclass
class Case:
    """What all ranks know, and the bags of each."""

    rows: list[int]
    routes: list[list[int]]
    chunks: int
    samples: int
    sources: list[Jagged]

    @property
    def plan(self):
        """Arguments of `id_encode` but the bags."""
        flat = [feature for route in self.routes for feature in route]
        return self.rows, flat, [len(route) for route in self.routes], self.id_bytes, self.chunks

    @property
    def id_bytes(self):
        return [ops.bytes_per_id([self.rows[f] for f in route]) for route in self.routes]

    @property
    def weighted(self):
        return self.sources[0].weights is not None

    def bags(self, destination: int, chunks: range) -> list[list[tuple[int, float | None]]]:
        """Ids and weights of the bags (source, chunk, feature of the route, sample)."""
        b = self.samples // self.chunks
        found = []
        for source in self.sources:
            bounds, ids = source.offsets.tolist(), source.ids.tolist()
            weights = [None] * len(ids) if source.weights is None else source.weights.float().tolist()
            for chunk in chunks:
                for feature in self.routes[destination]:
                    for sample in range(chunk * b, (chunk + 1) * b):
                        start, stop = bounds[feature * self.samples + sample :][:2]
                        whole = [i if 0 <= i < self.rows[feature] else -1 for i in ids[start:stop]]
                        found.append(list(zip(whole, weights[start:stop], strict=True)))
        return found


def random_jagged(seed, features, samples, longest, dtype, weighted, slack=0) -> Jagged:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (features * samples,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]) + slack
    count = int(offsets[-1]) + slack
    limits = torch.tensor([1, 200, 300, 70_000, 2**31 - 1, 2**41])[torch.randint(0, 6, (count,), generator=generator)]
    ids = torch.randint(-(2**40), 2**62, (count,), generator=generator) % limits
    ids = torch.where(torch.rand(count, generator=generator) < 0.1, -1 - ids, ids)
    weights = torch.rand(count, generator=generator, dtype=torch.float64) if weighted else None
    return Jagged(ids.to(dtype), offsets, weights)


@st.composite
def cases(draw) -> Case:
    features = draw(st.integers(1, 4))
    chunks = draw(st.integers(1, 4))
    samples = chunks * draw(st.integers(0, 3))
    routes = draw(st.lists(st.lists(st.integers(0, features - 1), max_size=4), min_size=1, max_size=3))
    longest, weighted = draw(st.sampled_from([0, 3, 300])), draw(st.booleans())
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    return Case(
        draw(st.lists(st.sampled_from(ROWS), min_size=features, max_size=features)),
        routes,
        chunks,
        samples,
        [
            random_jagged(
                draw(st.integers(0, 2**16)), features, samples, longest, dtype, weighted, draw(st.integers(0, 2))
            )
            for _ in routes
        ],
    )


def deliver(case: Case) -> list[tuple[Tensor, Tensor]]:
    """What every destination receives."""
    sent = [ops.id_encode(source, *case.plan) for source in case.sources]
    splits = [oracle.HEADER_BYTES + len(route) * case.samples for route in case.routes]
    lengths = [lengths.split(splits) for lengths, _, _ in sent]
    payloads = [payload.split(sizes[:-1].tolist()) for _, payload, sizes in sent]
    return [
        (torch.cat([pieces[d] for pieces in lengths]), torch.cat([pieces[d] for pieces in payloads]))
        for d in range(len(case.routes))
    ]


def as_bags(jagged: Jagged) -> list[list[tuple[int, float | None]]]:
    bounds, ids = jagged.offsets.tolist(), jagged.ids.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(ids)
    weights = [None] * len(ids) if jagged.weights is None else jagged.weights.tolist()
    items = list(zip(ids, weights, strict=True))
    return [items[a:b] for a, b in itertools.pairwise(bounds)]


@settings(max_examples=150, deadline=None)
@given(cases())
def test_messages_are_the_oracle_s(case):
    for source in case.sources:
        expected = oracle.id_encode(source.ids, source.offsets, source.weights, *case.plan)
        for mine, right in zip(ops.id_encode(source, *case.plan), expected, strict=True):
            assert mine.dtype == right.dtype and torch.equal(mine, right)


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([torch.int32, torch.int64]))
def test_what_is_decoded_is_what_was_sent(case, dtype):
    world = len(case.routes)
    for destination, (lengths, payload) in enumerate(deliver(case)):
        id_bytes = case.id_bytes[destination]
        if id_bytes == 8:
            dtype = torch.int64
        item_bytes = id_bytes + 4 * case.weighted
        sizes = ops.id_payload_bytes(lengths, world, item_bytes)
        assert torch.equal(sizes, oracle.id_payload_bytes(lengths, world, item_bytes))
        assert sizes.sum() == len(payload)
        options = {"weighted": case.weighted, "chunks": case.chunks, "dtype": dtype}
        received = ops.id_decode(lengths, payload, world, id_bytes, **options)
        assert len(received) == (case.chunks + 1 if case.chunks > 1 else 1)
        for mine, chunks in zip(received, [range(case.chunks), *([c] for c in range(case.chunks))], strict=False):
            assert mine.ids.dtype == dtype
            expected = case.bags(destination, chunks)
            if dtype == torch.int32:  # which a test may ask for where it does not hold all rows
                expected = [[(id if id < 2**31 else id - 2**32, w) for id, w in bag] for bag in expected]
            assert as_bags(mine) == expected
        right = oracle.id_decode(lengths, payload, world, id_bytes, *options.values())
        mine = torch.ops.dmt.id_decode(lengths, payload, world, id_bytes, *options.values())
        assert len(mine) == len(right) and all(torch.equal(a, b) for a, b in zip(mine, right, strict=True))


@pytest.mark.parametrize("length", [254, 255, 256, 65_535, 65_536, 70_001])
def test_bags_of_any_length(length):
    lengths = torch.tensor([3, length, 0, 255, length + 1, 1])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    ids = torch.arange(int(offsets[-1])) % 300
    case = Case([200, 300], [[0, 1], [1]], 3, 3, [Jagged(ids, offsets)] * 2)
    for destination, (message, payload) in enumerate(deliver(case)):
        long_bags = sum(n >= 255 for n in lengths.view(2, 3)[case.routes[destination]].flatten().tolist())
        id_bytes = case.id_bytes[destination]
        count = int(lengths.view(2, 3)[case.routes[destination]].sum())
        assert len(payload) == 2 * (8 * long_bags + id_bytes * count)
        for mine, chunks in zip(
            ops.id_decode(message, payload, 2, id_bytes, chunks=3), [range(3), [0], [1], [2]], strict=True
        ):
            assert as_bags(mine) == case.bags(destination, chunks)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(0, 1), (255, 1), (256, 2), (65_535, 2), (65_536, 4), (2**32 - 1, 4), (2**32, 8), (2**62, 8)],
)
def test_bytes_hold_all_rows_and_a_missing_id(rows, expected):
    assert ops.bytes_per_id([1, rows]) == expected
    last = torch.tensor([rows - 1, rows, -1]) if rows else torch.tensor([0, 0, -1])
    case = Case([rows], [[0]], 1, 1, [Jagged(last, torch.tensor([0, 3]))])
    [(lengths, payload)] = deliver(case)
    assert len(payload) == 3 * expected
    [received] = ops.id_decode(lengths, payload, 1, expected, dtype=torch.int64)
    assert received.ids.tolist() == ([rows - 1, -1, -1] if rows else [-1, -1, -1])


def test_bytes_do_not_depend_on_threads():
    jagged = random_jagged(1, 3, 40_000, 4, torch.int64, True)
    case = Case([70_000, 300, 200], [[0, 1], [2, 2]], 4, 40_000, [jagged] * 2)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            sent = ops.id_encode(jagged, *case.plan)
            received = [
                torch.ops.dmt.id_decode(*messages, 2, case.id_bytes[d], True, 4)
                for d, messages in enumerate(deliver(case))
            ]
            results.append([*sent, *(part for parts in received for part in parts)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("chunks", [1, 2])
def test_opcheck(weighted, chunks):
    jagged = random_jagged(3, 2, 4, 3, torch.int64, weighted)
    case = Case([70_000, 300], [[0, 1], [1]], chunks, 4, [jagged] * 2)
    torch.library.opcheck(torch.ops.dmt.id_encode, (jagged.ids, jagged.offsets, jagged.weights, *case.plan))
    lengths, payload = deliver(case)[0]
    item_bytes = case.id_bytes[0] + 4 * weighted
    torch.library.opcheck(torch.ops.dmt.id_payload_bytes, (lengths, 2, item_bytes))
    torch.library.opcheck(torch.ops.dmt.id_decode, (lengths, payload, 2, case.id_bytes[0], weighted, chunks))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [-1, 5]}, r"rows\[0\] is -1"),
        ({"routes": [0, 2]}, r"routes\[1\] is 2, but there are 2 features"),
        ({"route_sizes": [1, 2]}, r"route_sizes\[1\] is 2, but 1 routes are left"),
        ({"route_sizes": [1, 0]}, "route_sizes add up to 1, but there are 2 routes"),
        ({"route_sizes": [2]}, "got 1 route_sizes, but 2 id_bytes"),
        ({"id_bytes": [1, 3]}, "id_bytes must be 1, 2, 4 or 8, got 3"),
        ({"id_bytes": [1, 1], "rows": [5, 256]}, "ids of feature 1 with 256 rows need more than 1 byte$"),
        ({"chunks": 2}, "3 samples are no whole number of 2 chunks"),
        ({"chunks": 0}, "3 samples are no whole number of 0 chunks"),
        ({"offsets": torch.tensor([0, 1, 2, 1, 2, 3, 4])}, "offsets must not decrease"),
        ({"ids": torch.zeros(4)}, "ids must be int32 or int64, got float32"),
    ],
)
def test_what_cannot_be_encoded(change, message):
    arguments = {
        "ids": torch.arange(6),
        "offsets": torch.arange(7),
        "weights": None,
        "rows": [5, 5],
        "routes": [0, 1],
        "route_sizes": [1, 1],
        "id_bytes": [1, 1],
        "chunks": 1,
    }
    with pytest.raises(RuntimeError, match=f"^id_encode: {message}"):
        torch.ops.dmt.id_encode(**arguments | change)


def test_what_cannot_be_decoded():
    case = Case([5], [[0]], 1, 4, [random_jagged(0, 1, 4, 3, torch.int64, False)])
    [(lengths, payload)] = deliver(case)
    with pytest.raises(RuntimeError, match="^id_decode: lengths and payload do not belong together"):
        ops.id_decode(lengths, payload[:-1], 1, 1)
    with pytest.raises(RuntimeError, match="^id_decode: 28 bytes of lengths are no messages from 5 ranks"):
        ops.id_decode(lengths, payload, 5, 1)
    with pytest.raises(RuntimeError, match="^id_decode: 4 bags are no whole number of 3 chunks"):
        ops.id_decode(lengths, payload, 1, 1, chunks=3)
    with pytest.raises(RuntimeError, match="^id_decode: dtype must be int32 or int64, got int16"):
        ops.id_decode(lengths, payload, 1, 1, dtype=torch.int16)
    with pytest.raises(RuntimeError, match="^id_payload_bytes: item_bytes must be positive, got 0"):
        ops.id_payload_bytes(lengths, 1, 0)
    with pytest.raises(RuntimeError, match="^id_decode: lengths must be a contiguous vector of uint8"):
        ops.id_decode(lengths.int(), payload, 1, 1)
