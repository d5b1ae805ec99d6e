"""The exchange ops against plain ``torch.distributed``, in spawned ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dmt_kernels import ops
from dmt_kernels.comm import build_mesh
from tests.devices import devices
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


def _two_stages(rank: int, device: str) -> None:
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
def test_two_stages_carry_the_bits_of_one(device: str) -> None:
    run_ranks(_two_stages, WORLD, device, device=device)


def _gradients(rank: int, compiled: bool) -> Tensor:
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

    (torch.compile(road, fullgraph=True) if compiled else road)(pooled).backward()
    assert pooled.grad is not None
    return pooled.grad


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "fullgraph"])
def test_gradients_come_back_over_the_same_road(compiled: bool) -> None:
    grads = run_ranks(_gradients, WORLD, compiled, timeout_s=120)
    starts = [sum(WIDTHS[:g]) for g in range(WORLD)]
    total = sum(WIDTHS)
    for source, grad in enumerate(grads):
        for destination in range(WORLD):
            t, r = divmod(destination, MEMBERS)
            for sample in range(SAMPLES):
                for column in range(WIDTHS[source]):
                    expected = (sample * total + starts[source] + column + 1) * (destination + 1)
                    assert grad[r, t, sample, column] == expected


def _every_dtype(rank: int, device: str) -> None:
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
def test_every_dtype_arrives(device: str) -> None:
    run_ranks(_every_dtype, WORLD, device, device=device)


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
    return "checked"


def test_wrong_shapes_are_told() -> None:
    assert run_ranks(_wrong_shape, 2) == ["checked"] * 2
