"""An over-arch that has a batch by chunks: in which order it works, and what becomes of odd gradients."""

import itertools
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dmt_kernels.comm import Mesh
from dmt_kernels.embedding import EmbeddingExchange
from dmt_kernels.embedding.sptt_flight import SpttFlight
from dmt_kernels.models import DCN, DLRM
from dmt_kernels.spec import Batch, Topology
from dmt_kernels.train.step import TrainStep
from tests.embedding.worlds import SAMPLES, World, build, global_batch, jagged, mesh_of
from tests.ranks import run_ranks

TOPOLOGY, CHUNKS = Topology(2, 2), 3
WORLDS = {
    "flat": World(TOPOLOGY, (("times", "replicated"),), chunks=CHUNKS),
    "sptt": World(TOPOLOGY, (("times", "replicated"),), tower="custom", chunks=CHUNKS),
    "owner": World(TOPOLOGY, tower="linear", chunks=CHUNKS, placement="owner"),
}

ENDINGS = ("outputs", "loss")
OverArch = Callable[..., Tensor]


def _stepped(
    kind: str, ending: str, rank: int, over_arch: Callable[[Mesh], OverArch], *rows: Tensor
) -> EmbeddingExchange:
    """An exchange after one step under an over-arch, by its outputs or its loss."""
    world = WORLDS[kind]
    exchange, mesh = build(world, "flat" if kind == "flat" else "sptt", rank), mesh_of(TOPOLOGY, "cpu")
    ids, weights, _ = global_batch(world, exchange.features, 0)
    sparse = jagged(world, ids, weights, rank * SAMPLES, (rank + 1) * SAMPLES)
    behind, in_flight = over_arch(mesh), exchange.start(sparse)
    if ending == "loss":
        exchange.finish_into_loss(in_flight, lambda *part: behind(*part).sum(), *rows).backward()
    else:
        exchange.finish_into(in_flight, behind, *rows).sum().backward()
    return exchange


SCHEDULE = ("lookup", "compress", "deliver", "send_back", "decompress", "collect")


def _order(rank: int, kind: str, ending: str) -> list[str]:
    """What a step of a model does, chunk by chunk, in its order: by its outputs, or as :class:`TrainStep` has it."""
    seen: list[str] = []

    def noting(word: str) -> Callable[..., object]:
        method = getattr(SpttFlight, word)
        return lambda self, chunk, *rest: (seen.append(f"{word} {chunk}"), method(self, chunk, *rest))[1]

    def note_model(module: nn.Module, inputs: tuple[Tensor]) -> None:
        chunk = sum(word.startswith("model ") for word in seen)
        seen.append(f"model {chunk}")
        inputs[0].register_hook(lambda _: seen.append(f"model' {chunk}"))

    with pytest.MonkeyPatch.context() as patch:
        for word in SCHEDULE:
            patch.setattr(SpttFlight, word, noting(word))
        model, step, batch = _model_and_step(kind, rank, CHUNKS)
        (model.top if kind == "dlrm" else model.cross).register_forward_pre_hook(note_model)
        if ending == "loss":
            step(batch)
        else:
            model(batch.dense.double(), batch.sparse).sum().backward()
    return seen


def _model_and_step(kind: str, rank: int, chunks: int, **options: bool) -> tuple[nn.Module, TrainStep, Batch]:
    world = World(TOPOLOGY, dtype=torch.float64, tower="linear", chunks=chunks)
    exchange = build(world, "sptt", rank)
    make = {"dlrm": partial(DLRM, out_dim=1, bottom=(4,), top=(5,)), "dcn": partial(DCN, deep=(5,))}[kind]
    model = make(exchange, dense_width=3, **options).to(world.dtype)
    ids, weights, target = global_batch(world, exchange.features, 0)
    mine = slice(rank * SAMPLES, (rank + 1) * SAMPLES)
    dense = torch.linspace(-1, 1, SAMPLES * 3).view(SAMPLES, 3)
    sparse = jagged(world, ids, weights, mine.start, mine.stop)
    batch = Batch(dense, sparse, target[mine].round(), torch.ones(SAMPLES), SAMPLES * TOPOLOGY.world)
    return model, TrainStep(model, mesh_of(TOPOLOGY, "cpu"), optimizer="adagrad", lr=0.1), batch


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", ["dlrm", "dcn"])
def test_what_has_arrived_is_worked_on_first_and_leaves_first(kind: str, ending: str) -> None:
    assert CHUNKS == 3
    depart = "lookup 0, compress 0, lookup 1, lookup 2, compress 1, compress 2"
    there = ", ".join(f"deliver {chunk}, model {chunk}" for chunk in range(3))
    back = ", ".join(f"model' {chunk}, send_back {chunk}" for chunk in (2, 1, 0))
    home = "decompress 2, decompress 1, collect 2, decompress 0, collect 1, collect 0"
    if ending == "loss":  # while the chunks after it travel
        there = ", ".join(f"deliver {c}, model {c}, model' {c}, send_back {c}" for c in range(3))
        back = "decompress 0"
        home = "decompress 1, collect 0, decompress 2, collect 1, collect 2"
    expected = ", ".join((depart, there, back, home)).split(", ")
    assert run_ranks(_order, TOPOLOGY.world, kind, ending) == [expected] * TOPOLOGY.world


def _off(rank: int) -> list[tuple[str, float]]:
    """How far two steps of models are from what they are in one chunk, in float64."""
    off = []
    for kind, expand in (("dlrm", False), ("dlrm", True), ("dcn", False), ("dcn", True)):
        results = []
        for chunks in (1, CHUNKS, SAMPLES):
            model, step, batch = _model_and_step(kind, rank, chunks, expand=expand)
            losses = torch.stack([step(batch), step(batch)])
            results.append(torch.cat([losses, *(value.flatten().double() for value in model.state_dict().values())]))
        off += [(f"{kind} {expand}", (other - results[0]).abs().max().item()) for other in results[1:]]
    return off


def test_models_are_the_same_in_any_number_of_chunks() -> None:
    for rank in run_ranks(_off, TOPOLOGY.world):
        assert all(off < 1e-12 for _, off in rank), rank


def _narrow(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of a layer under autocast: of all chunks at once, chunk by chunk, and added up in float32."""
    world = World(TOPOLOGY, chunks=SAMPLES)
    exchange, chunks = build(world, "sptt", rank), []
    layer = nn.Linear(sum(exchange.out_widths), 7, bias=False)
    ids, weights, _ = global_batch(world, exchange.features, 0)
    with torch.autocast("cpu", torch.bfloat16):
        in_flight = exchange.start(jagged(world, ids, weights, rank * SAMPLES, (rank + 1) * SAMPLES))
        result = exchange.finish_into(in_flight, lambda x: chunks.append(layer(x)) or chunks[-1])
        scale = torch.linspace(-1, 1, result.numel()).view_as(result).sin()
        parts = [
            torch.autograd.grad((chunk * part).sum(), layer.weight, retain_graph=True)[0]
            for chunk, part in zip(chunks, scale.split(1), strict=True)
        ]
        (result * scale).sum().backward()
    at_once, layer.weight.grad = layer.weight.grad, None
    exchange = build(world, "sptt", rank)  # as it was before its tables were updated
    with torch.autocast("cpu", torch.bfloat16):
        in_flight = exchange.start(jagged(world, ids, weights, rank * SAMPLES, (rank + 1) * SAMPLES))
        loss = exchange.finish_into_loss(in_flight, lambda x, part: (layer(x) * part).sum(), scale)
    loss.backward()
    return at_once, layer.weight.grad, torch.stack(parts).sum(0)


def test_gradients_of_chunks_are_added_up_in_float_under_autocast() -> None:
    for at_once, chunk_by_chunk, expected in run_ranks(_narrow, TOPOLOGY.world):
        torch.testing.assert_close(at_once, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(chunk_by_chunk, expected, rtol=1e-5, atol=1e-6)


def _unlike_rows(rank: int) -> list[str]:
    """What rows are told that are not as many as the samples."""
    said = []
    for rows, ending in itertools.product((SAMPLES - 1, SAMPLES // 2, SAMPLES + 3), ENDINGS):
        with pytest.raises(RuntimeError) as error:
            _stepped("flat", ending, rank, lambda _: lambda embeddings, more: embeddings + more.sum(), torch.ones(rows))
        said.append(str(error.value))
    return said


def test_rows_that_are_not_the_samples_are_refused() -> None:
    for said in run_ranks(_unlike_rows, TOPOLOGY.world):
        assert all("unflatten" in message for message in said)


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
    "all ignored": [_ignoring({0, 1, 2}, {1}, forget=forget) for forget in (True, False)],
}


def _agree(rank: int) -> list[tuple[str, str, str]]:
    """Where odd gradients did not do what their plain twins do, bit for bit."""
    wrong = []
    for kind, ending in itertools.product(WORLDS, ENDINGS):
        for name, twins in ODD.items():
            if name == "all ignored" and ending == "outputs":
                continue  # there is no way back that autograd would see
            states = []
            for over_arch in twins:
                exchange = _stepped(kind, ending, rank, over_arch)
                grads = {f"{key}'": p.grad for key, p in exchange.named_parameters() if p.grad is not None}
                states.append(exchange.state_dict() | grads)
            odd, plain = states
            if odd.keys() != plain.keys() or not all(torch.equal(odd[key], plain[key]) for key in plain):
                wrong.append((kind, ending, name))
    return wrong


def test_chunks_leave_in_one_order_whichever_gradient_comes_first_or_not_at_all() -> None:
    assert run_ranks(_agree, TOPOLOGY.world) == [[]] * TOPOLOGY.world


def _twice(rank: int) -> str:
    """Two backward passes, each through some of the chunks."""
    chunks: list[Tensor] = []
    world = WORLDS["sptt"]
    exchange = build(world, "sptt", rank)
    ids, weights, _ = global_batch(world, exchange.features, 0)
    sparse = jagged(world, ids, weights, rank * SAMPLES, (rank + 1) * SAMPLES)
    exchange.finish_into(exchange.start(sparse), lambda embeddings: chunks.append(embeddings) or embeddings)
    chunks[0].sum().backward()
    with pytest.raises(RuntimeError) as error:
        chunks[2].sum().backward()
    return str(error.value)


def test_a_batch_has_one_backward_pass_for_all_its_chunks() -> None:
    assert all("one backward pass" in message for message in run_ranks(_twice, TOPOLOGY.world))


def _without_a_row(ignoring: int, *, constant: bool) -> OverArch:
    """One chunk does not depend on a row, or on nothing at all."""
    seen: list[Tensor] = []

    def over_arch(embeddings: Tensor, row: Tensor) -> Tensor:
        seen.append(row)
        if len(seen) - 1 != ignoring:
            return embeddings.sum(1) + row**2
        return torch.zeros_like(row) if constant else embeddings.sum(1)

    return over_arch


def _row_gradients(rank: int) -> list[list[Tensor]]:
    """Gradients of a row that some chunk ignores, by outputs and by loss."""
    found = []
    for ignoring, constant in itertools.product(range(CHUNKS), (False, True)):
        rows = [torch.arange(1.0, SAMPLES + 1, requires_grad=True) for _ in ENDINGS]
        for ending, row in zip(ENDINGS, rows, strict=True):
            over_arch = _without_a_row(ignoring, constant=constant)
            _stepped("flat", ending, rank, lambda _, over_arch=over_arch: over_arch, row * 1)
        found.append([row.grad for row in rows])
    return found


def test_rows_have_their_gradients_whichever_chunk_ignores_them() -> None:
    for pairs in run_ranks(_row_gradients, TOPOLOGY.world):
        for by_outputs, by_loss in pairs:
            assert by_outputs.count_nonzero() == SAMPLES - SAMPLES // CHUNKS
            assert torch.equal(by_outputs, by_loss)


def _scaled(rank: int) -> str:
    """A loss that is scaled after chunks of it have gone back."""
    world = WORLDS["sptt"]
    exchange = build(world, "sptt", rank)
    ids, weights, _ = global_batch(world, exchange.features, 0)
    sparse = jagged(world, ids, weights, rank * SAMPLES, (rank + 1) * SAMPLES)
    loss = exchange.finish_into_loss(exchange.start(sparse), torch.sum)
    with pytest.raises(RuntimeError) as error:
        (loss / 2).backward()
    return str(error.value)


def test_a_loss_that_has_gone_back_cannot_be_scaled() -> None:
    assert all("cannot be scaled" in message for message in run_ranks(_scaled, TOPOLOGY.world))


def _losses(rank: int) -> list[tuple[float, float]]:
    """A batch's loss with and without a gradient, by chunks and of all outputs."""
    world = WORLDS["owner"]
    exchange = build(world, "sptt", rank)
    ids, weights, _ = global_batch(world, exchange.features, 0)
    sparse = jagged(world, ids, weights, rank * SAMPLES, (rank + 1) * SAMPLES)
    found = []
    for trains in (False, True):
        with torch.set_grad_enabled(trains):
            whole = exchange.finish_into(exchange.start(sparse), torch.sin).sum()
            found.append((exchange.finish_into_loss(exchange.start(sparse), lambda x: x.sin().sum()), whole))
    return [(loss.item(), whole.item()) for loss, whole in found]


def test_the_loss_of_chunks_is_the_batchs() -> None:
    for pairs in run_ranks(_losses, TOPOLOGY.world):
        assert all(loss == pytest.approx(whole, rel=1e-5) for loss, whole in pairs)


def _compiled(rank: int) -> list[tuple[int, bool]]:
    """For a few numbers of chunks: graphs of a compiled model, and whether it trains to the bits of an eager one."""
    found = []
    for chunks in (1, CHUNKS):
        graphs: list[torch.fx.GraphModule] = []

        def keep(graph: torch.fx.GraphModule, _: object, graphs: list[torch.fx.GraphModule] = graphs) -> Callable:
            graphs.append(graph)
            return graph.forward

        states = []
        for is_compiled in (False, True):
            model, step, batch = _model_and_step("dlrm", rank, chunks)
            if is_compiled:
                torch._dynamo.reset()
                model.compile(backend=keep)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "(?s).*Dynamo")
                losses = [step(batch) for _ in range(2)]
            states.append([torch.stack(losses), *model.state_dict().values()])
        found.append((len(graphs), all(map(torch.equal, *states))))
    return found


def test_a_compiled_model_breaks_its_graph_at_the_exchange() -> None:
    for found in run_ranks(_compiled, TOPOLOGY.world, timeout_s=120):
        assert all(is_same for _, is_same in found)
        assert all(2 <= graphs <= 4 for graphs, _ in found)  # the dense MLP and what is behind the exchange; few again
