"""An over-arch that has a batch by chunks: in which order it works, and what becomes of odd gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dmt_kernels.comm import Mesh
from dmt_kernels.embedding import EmbeddingExchange
from dmt_kernels.embedding.peer_flight import PeerFlight
from dmt_kernels.spec import Topology
from tests.embedding.worlds import SAMPLES, World, build, global_batch, jagged, mesh_of
from tests.ranks import run_ranks

TOPOLOGY, CHUNKS = Topology(2, 2), 3
WORLDS = {
    "flat": World(TOPOLOGY, (("times", "replicated"),), chunks=CHUNKS),
    "sptt": World(TOPOLOGY, (("times", "replicated"),), tower="custom", chunks=CHUNKS),
    "owner": World(TOPOLOGY, tower="linear", chunks=CHUNKS, placement="owner"),
}

OverArch = Callable[[Tensor], Tensor]


def _stepped(kind: str, rank: int, over_arch: Callable[[Mesh], OverArch]) -> tuple[EmbeddingExchange, Tensor]:
    """An exchange after one step under an over-arch, and the result of that."""
    world = WORLDS[kind]
    exchange, mesh = build(world, "flat" if kind == "flat" else "sptt", rank), mesh_of(TOPOLOGY, "cpu")
    ids, weights, _ = global_batch(world, exchange.features, 0)
    sparse = jagged(world, ids, weights, rank * SAMPLES, (rank + 1) * SAMPLES)
    result = exchange.finish_into(exchange.start(sparse), over_arch(mesh))
    result.sum().backward()
    return exchange, result


def _order(rank: int) -> list[str]:
    seen: list[str] = []

    def over_arch(embeddings: Tensor) -> Tensor:
        chunk = sum(word.startswith("over-arch ") for word in seen)
        seen.append(f"over-arch {chunk}")
        embeddings.register_hook(lambda _: seen.append(f"over-arch' {chunk}"))
        return embeddings.sin()

    def noting(word: str) -> Callable[..., object]:
        method = getattr(PeerFlight, word)
        return lambda self, chunk, *rest: (seen.append(f"{word} {chunk}"), method(self, chunk, *rest))[1]

    with pytest.MonkeyPatch.context() as patch:
        for word in ("deliver", "send_back"):
            patch.setattr(PeerFlight, word, noting(word))
        _stepped("sptt", rank, lambda _: over_arch)
    return seen


def test_what_has_arrived_is_worked_on_first_and_leaves_first() -> None:
    there = [word for chunk in range(CHUNKS) for word in (f"deliver {chunk}", f"over-arch {chunk}")]
    back = [word for chunk in reversed(range(CHUNKS)) for word in (f"over-arch' {chunk}", f"send_back {chunk}")]
    assert run_ranks(_order, TOPOLOGY.world) == [there + back] * TOPOLOGY.world


def _plain(mesh: Mesh) -> OverArch:
    return Tensor.sin


def _late_first_chunk(mesh: Mesh) -> OverArch:
    """On rank 1, the work on the first chunk comes last, so that its gradient comes first."""
    kept: list[Tensor] = []

    def over_arch(embeddings: Tensor) -> Tensor:
        kept.append(embeddings)
        if mesh.rank != 1:
            return embeddings.sin()
        if len(kept) == 1:
            return torch.zeros_like(embeddings)
        return embeddings.sin() + (kept[0].sin() if len(kept) == CHUNKS else 0)

    return over_arch


def _ignoring(chunks: set[int], ranks: set[int], *, forget: bool) -> Callable[[Mesh], OverArch]:
    """On some ranks, the loss does not depend on some chunks: their gradient is zero, or there is none."""

    def make(mesh: Mesh) -> OverArch:
        seen: list[Tensor] = []

        def over_arch(embeddings: Tensor) -> Tensor:
            seen.append(embeddings)
            if mesh.rank not in ranks or len(seen) - 1 not in chunks:
                return embeddings.sin()
            return torch.zeros_like(embeddings) if forget else embeddings.sin() * 0

        return over_arch

    return make


ODD = {
    "in place": (lambda mesh: Tensor.sin_, _plain),
    "late": (_late_first_chunk, _plain),
    "the first ignored": [_ignoring({0}, {2}, forget=forget) for forget in (True, False)],
    "the last ignored": [_ignoring({2}, {0, 1, 2, 3}, forget=forget) for forget in (True, False)],
    "all but one ignored": [_ignoring({0, 2}, {1}, forget=forget) for forget in (True, False)],
}


def _agree(rank: int) -> list[tuple[str, str]]:
    """Where odd gradients did not do what their plain twins do, bit for bit."""
    wrong = []
    for kind in WORLDS:
        for name, twins in ODD.items():
            states = []
            for over_arch in twins:
                exchange, _ = _stepped(kind, rank, over_arch)
                grads = {f"{key}'": p.grad for key, p in exchange.named_parameters() if p.grad is not None}
                states.append(exchange.state_dict() | grads)
            odd, plain = states
            if odd.keys() != plain.keys() or not all(torch.equal(odd[key], plain[key]) for key in plain):
                wrong.append((kind, name))
    return wrong


def test_chunks_leave_in_one_order_whichever_gradient_comes_first_or_not_at_all() -> None:
    assert run_ranks(_agree, TOPOLOGY.world) == [[]] * TOPOLOGY.world


def _twice(rank: int, first: int, last: int) -> str:
    """Two backward passes, each through some of the chunks."""
    chunks: list[Tensor] = []
    world = WORLDS["sptt"]
    exchange = build(world, "sptt", rank)
    ids, weights, _ = global_batch(world, exchange.features, 0)
    sparse = jagged(world, ids, weights, rank * SAMPLES, (rank + 1) * SAMPLES)
    exchange.finish_into(exchange.start(sparse), lambda embeddings: chunks.append(embeddings) or embeddings)
    chunks[first].sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError) as error:
        chunks[last].sum().backward()
    return str(error.value)


@pytest.mark.parametrize(("first", "last"), [(0, 2), (2, 0), (1, 1)])
def test_a_batch_has_one_backward_pass_for_all_its_chunks(first: int, last: int) -> None:
    assert all("one backward pass" in message for message in run_ranks(_twice, TOPOLOGY.world, first, last))
