"""The exchange ops against plain ``torch.distributed``, in spawned ranks, on the engine and as compositions."""

import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dmt_kernels import ops
from dmt_kernels.comm import build_mesh, traffic
from dmt_kernels.spec import InputError
from tests.devices import devices
from tests.ops.engines import engines, use
from tests.ranks import run_ranks

TOWERS, MEMBERS, SAMPLES = 2, 2, 3
WORLD = TOWERS * MEMBERS
WIDTHS = [2, 0, 3, 1]  # columns that each rank pools; rank 1 has none
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int16]


def _pooled(rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``[R, T, B, D_r]`` in peer order: every element names its source, destination, sample and column."""
    r, t, b, d = torch.meshgrid(*map(torch.arange, (MEMBERS, TOWERS, SAMPLES, WIDTHS[rank])), indexing="ij")
    return (rank * 1000 + (t * MEMBERS + r) * 100 + b * 10 + d).to(dtype)


def _flat_oracle(pooled: Tensor, rank: int) -> Tensor:
    """``[B, sum(D_r)]`` by one all-to-all over the world."""
    by_rank = pooled.transpose(0, 1).reshape(WORLD, -1)
    out = pooled.new_empty(SAMPLES * sum(WIDTHS))
    dist.all_to_all_single(out, by_rank.flatten(), [SAMPLES * w for w in WIDTHS], [SAMPLES * WIDTHS[rank]] * WORLD)
    pieces = out.split([SAMPLES * w for w in WIDTHS])
    return torch.cat([piece.view(SAMPLES, w) for piece, w in zip(pieces, WIDTHS, strict=True)], dim=1)


def _two_stages(rank: int, device: str, engine: str) -> None:
    use(engine)
    mesh = build_mesh(TOWERS, MEMBERS, device=device, timeout_s=30)
    tower, peer = mesh.tower.group_name, mesh.peer.group_name
    t = mesh.tower_index
    member_widths = WIDTHS[t * MEMBERS : (t + 1) * MEMBERS]
    tower_widths = [sum(WIDTHS[:MEMBERS]), sum(WIDTHS[MEMBERS:])]
    pooled = _pooled(rank).to(device)
    if pooled.numel():
        pooled.view(-1)[0], pooled.view(-1)[-1] = float("nan"), -0.0
    expected = _flat_oracle(pooled, rank)
    got = ops.two_stage_all_to_all(pooled, member_widths, tower_widths, tower, peer)
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), "bits differ, NaN and -0 included"

    # A module of the caller's between the stages, by start and wait.
    started = ops.tower_all_to_all_start(pooled.flatten(1, 2), member_widths, tower)
    between = torch.cat(ops.tower_all_to_all_wait(started, member_widths), dim=1)
    assert between.shape == (TOWERS * SAMPLES, tower_widths[t])
    halved = between.view(TOWERS, SAMPLES, -1) * 0.5
    blocks = ops.peer_all_to_all_wait(ops.peer_all_to_all_start(halved, tower_widths, peer), tower_widths)
    torch.testing.assert_close(torch.cat(blocks, dim=1), expected * 0.5, equal_nan=True)
    module = ops.two_stage_all_to_all(pooled, member_widths, tower_widths, tower, peer, lambda x: x * 0.5)
    torch.testing.assert_close(module, expected * 0.5, equal_nan=True)


@devices
@engines
def test_two_stages_carry_the_bits_of_one(device: str, engine: str) -> None:
    run_ranks(_two_stages, WORLD, device, engine, device=device)


def _gradients(rank: int, engine: str | None) -> Tensor:
    if engine is not None:
        use(engine)
    mesh = build_mesh(TOWERS, MEMBERS, timeout_s=30)
    t = mesh.tower_index
    member_widths = WIDTHS[t * MEMBERS : (t + 1) * MEMBERS]
    tower_widths = [sum(WIDTHS[:MEMBERS]), sum(WIDTHS[MEMBERS:])]
    pooled = _pooled(rank).requires_grad_()
    scale = torch.arange(1.0, SAMPLES * sum(WIDTHS) + 1).view(SAMPLES, -1) * (rank + 1)

    def road(x: Tensor) -> Tensor:
        groups = mesh.tower.group_name, mesh.peer.group_name
        out = torch.ops.dmt.two_stage_all_to_all(x, member_widths, tower_widths, *groups)
        return (out * scale).sum()

    (road if engine else torch.compile(road, fullgraph=True))(pooled).backward()
    assert pooled.grad is not None
    return pooled.grad


def _check_gradients(grads: list[Tensor]) -> None:
    starts = [sum(WIDTHS[:g]) for g in range(WORLD)]
    total = sum(WIDTHS)
    for source, grad in enumerate(grads):
        for destination in range(WORLD):
            t, r = divmod(destination, MEMBERS)
            for sample in range(SAMPLES):
                for column in range(WIDTHS[source]):
                    expected = (sample * total + starts[source] + column + 1) * (destination + 1)
                    assert grad[r, t, sample, column] == expected


@engines
def test_gradients_come_back_over_the_same_road(engine: str) -> None:
    _check_gradients(run_ranks(_gradients, WORLD, engine))


def test_gradients_come_back_over_the_same_road_of_one_graph() -> None:
    _check_gradients(run_ranks(_gradients, WORLD, None, timeout_s=120))


def _there_and_back(x: Tensor, group: str, beside: Callable[[], Tensor]) -> Tensor:
    """All-to-all among 2 ranks, with something beside it."""
    started = ops.tower_all_to_all_start(x, [3, 3], group)
    other = beside()
    return torch.cat(ops.tower_all_to_all_wait(started, [3, 3]), dim=1).sin() + other


def _beside(rank: int, engine: str) -> None:
    use(engine)
    group = build_mesh(1, 2, timeout_s=30).tower.group_name
    x = (torch.arange(12.0).view(2, 2, 3) + 100 * rank).requires_grad_()
    weight = torch.ones(2, 6, requires_grad=True)
    seen = []

    def beside() -> Tensor:
        seen.append(traffic.sent_bytes())
        out = weight.exp()
        out.register_hook(lambda grad: seen.append(traffic.sent_bytes()))
        return out

    traffic.reset()
    _there_and_back(x, group, beside).sum().backward()
    bytes_each = {("tower", link): 24 for link in ("self", "tower")}
    assert seen == [bytes_each, {key: 2 * size for key, size in bytes_each.items()}], "each way sent, not waited for"
    arriving = torch.cat([torch.arange(12.0).view(2, 2, 3)[rank] + 100 * source for source in range(2)], dim=1)
    assert x.grad is not None and weight.grad is not None
    torch.testing.assert_close(weight.grad, weight.detach().exp())
    torch.testing.assert_close(x.grad, x.detach().cos())
    torch.testing.assert_close(_there_and_back(x, group, beside), arriving.sin() + weight.exp())


@engines
def test_what_stands_between_runs_under_the_messages_both_ways(engine: str) -> None:
    run_ranks(_beside, 2, engine)


def _differentiated_again(rank: int, engine: str) -> None:
    use(engine)
    group = build_mesh(1, 2, timeout_s=30).tower.group_name
    x = (torch.arange(12.0).view(2, 2, 3) + 100 * rank).requires_grad_()
    out = _there_and_back(x, group, lambda: torch.zeros(2, 6))
    for retained in (True, True):
        [grad] = torch.autograd.grad(out.sum(), x, retain_graph=retained)
        torch.testing.assert_close(grad, x.detach().cos())
    [grad] = torch.autograd.grad(out.sum(), x, create_graph=True)
    [second] = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(second, -x.detach().sin())


@engines
def test_backward_again_and_of_the_backward(engine: str) -> None:
    run_ranks(_differentiated_again, 2, engine)


def _half_compiled(rank: int, engine: str) -> None:
    """Start eagerly and wait in a graph, and the other way round."""
    use(engine)
    group = build_mesh(1, 2, timeout_s=30).tower.group_name

    def start(x: Tensor) -> Tensor:
        return ops.tower_all_to_all_start(x, [3, 3], group)

    def wait(started: Tensor) -> Tensor:
        return torch.cat(ops.tower_all_to_all_wait(started, [3, 3]), dim=1) * 2

    for first, second in ((start, torch.compile(wait)), (torch.compile(start), wait)):
        for pause in (0, 0.3):
            x = (torch.arange(12.0).view(2, 2, 3) + 100 * rank).requires_grad_()
            expected = _there_and_back(x, group, lambda: torch.zeros(2, 6))
            time.sleep(pause * rank)  # what has been compiled is fast, and has to wait
            out = second(first(x))
            torch.testing.assert_close((out / 2).sin(), expected)
            [grad] = torch.autograd.grad(out.sum(), x)
            assert torch.equal(grad, torch.full_like(grad, 2.0))


@engines
def test_a_graph_may_hold_one_half(engine: str) -> None:
    run_ranks(_half_compiled, 2, engine, timeout_s=120)


def _every_dtype(rank: int, device: str, engine: str) -> None:
    use(engine)
    mesh = build_mesh(TOWERS, MEMBERS, device=device, timeout_s=30)
    t = mesh.tower_index
    widths = WIDTHS[t * MEMBERS : (t + 1) * MEMBERS]
    for dtype in DTYPES:
        pooled = _pooled(rank, dtype).to(device)
        blocks = ops.tower_all_to_all(pooled.flatten(1, 2), widths, mesh.tower.group_name)
        for member, block in enumerate(blocks):
            source = t * MEMBERS + member
            mine = _pooled(source, dtype).flatten(1, 2)[mesh.member_index]
            assert block.dtype == dtype and torch.equal(block.cpu(), mine), f"{dtype} from {source} to {rank}"


@devices
@engines
def test_every_dtype_arrives(device: str, engine: str) -> None:
    run_ranks(_every_dtype, WORLD, device, engine, device=device)


def _two_exchanges(rank: int) -> None:
    mesh = build_mesh(1, 1, timeout_s=30)
    groups = mesh.tower.group_name, mesh.peer.group_name

    def road(x: Tensor) -> tuple[Tensor, Tensor]:
        once = torch.ops.dmt.two_stage_all_to_all(x, [8], [8], *groups)
        turned = once.flip(0) * 2 + 1
        twice = torch.ops.dmt.two_stage_all_to_all(turned.view(1, 1, 16, 8), [8], [8], *groups)
        return once * 3 + twice.flip(0), once.t() @ twice

    plain = torch.randn(1, 1, 16, 8).requires_grad_()
    compiled = plain.detach().clone().requires_grad_()
    expected, actual = road(plain), torch.compile(road, fullgraph=True)(compiled)
    sum(out.square().sum() for out in expected).backward()
    sum(out.square().sum() for out in actual).backward()
    torch.testing.assert_close([*actual, compiled.grad], [*expected, plain.grad], rtol=1e-4, atol=1e-3)


def _with_a_module(rank: int) -> None:
    mesh = build_mesh(2, 1, timeout_s=30)
    module = torch.nn.Linear(3, 2)

    def road(x: Tensor) -> Tensor:
        return ops.two_stage_all_to_all(x, [3], [2, 2], mesh.tower.group_name, mesh.peer.group_name, module)

    compiled = torch.compile(road, backend="aot_eager", fullgraph=True)
    for samples in (4, 0):
        x = torch.randn(1, 2, samples, 3, requires_grad=True)
        expected, actual = road(x), compiled(x)
        assert expected.shape == (samples, 4)
        torch.testing.assert_close(actual, expected)
        grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (expected, actual)]
        torch.testing.assert_close(*grads)


def test_two_stages_with_a_module_are_compiled_whole() -> None:
    run_ranks(_with_a_module, 2, timeout_s=120)


def test_inductor_keeps_what_arrived_while_it_is_needed() -> None:
    run_ranks(_two_exchanges, 1, timeout_s=120)


def _opcheck(rank: int) -> None:
    mesh = build_mesh(1, 2, timeout_s=30)
    group = mesh.ids.group_name
    blocks = torch.arange(8.0).view(2, 2, 2).requires_grad_()
    torch.library.opcheck(
        torch.ops.dmt.tower_all_to_all.default,
        (blocks, [2, 2], mesh.tower.group_name),
        # torch's own wait_tensor, which this decomposes into, returns its argument and does not say so.
        test_utils=("test_autograd_registration", "test_aot_dispatch_dynamic"),
    )
    ids, offsets = torch.arange(4), torch.tensor([0, 1, 2, 3, 4])
    torch.library.opcheck(torch.ops.dmt.id_exchange.default, (ids, offsets, None, 2, [0, 1], [1, 1], rank, group))


def test_opcheck() -> None:
    run_ranks(_opcheck, 2, timeout_s=120)


def _wrong_shape(rank: int) -> str:
    mesh = build_mesh(1, 2, timeout_s=30)
    with pytest.raises(RuntimeError, match=r"expected \[2, N, D\]"):
        ops.tower_all_to_all(torch.zeros(3, 2, 2), [2, 2], mesh.tower.group_name)
    with pytest.raises(RuntimeError, match="splits add up to 3"):
        ops.all_to_all.all_to_all(torch.zeros(4), [2, 2], [1, 2], mesh.tower.group_name)
    with pytest.raises(RuntimeError, match="no rank sends a column"):
        ops.tower_all_to_all(torch.zeros(2, 2, 0), [0, 0], mesh.tower.group_name)
    return "checked"


def _twice(rank: int, engine: str) -> None:
    use(engine)
    group = build_mesh(1, 2, timeout_s=30).tower.group_name
    for _ in range(2):
        started = ops.tower_all_to_all_start(torch.ones(2, 3, 1, requires_grad=True), [1, 1], group)
        first, again = (torch.cat(ops.tower_all_to_all_wait(started, [1, 1])) for _ in range(2))
        assert torch.equal(first, again)
        with pytest.raises(InputError, match="by the first wait alone"):
            again.sum().backward()
        x = torch.ones(2, 3, 1, requires_grad=True)

        def behind(started: Tensor) -> Tensor:
            return torch.cat(ops.tower_all_to_all_wait(started, [1, 1])).square()

        started = ops.tower_all_to_all_start(x, [1, 1], group)
        checkpoint(behind, started, use_reentrant=False).sum().backward()  # waits again to recompute
        assert torch.equal(x.grad, torch.full_like(x, 2.0))


@engines
def test_the_gradient_comes_back_by_the_first_wait(engine: str) -> None:
    run_ranks(_twice, 2, engine)


def test_wrong_shapes_are_told() -> None:
    assert run_ranks(_wrong_shape, 2) == ["checked"] * 2
