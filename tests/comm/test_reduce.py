"""Sums of dense gradients that travel under the backward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_kernels.comm import GradientSum, Mesh, all_reduce_flat, build_mesh, traffic
from tests.devices import devices
from tests.ranks import run_ranks

WORLD = 3


def _parameters(device: str) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, device=device)) for shape in ((3, 5), (7,), (2, 2), ())]


def _loss(parameters: list[nn.Parameter], rank: int, step: int = 0) -> Tensor:
    """With other gradients on every rank and in every step."""
    return sum(((p * (rank + 1.3) + step).sin() * (i + 0.7)).sum() for i, p in enumerate(parameters))  # type: ignore


def _sums_apart(parameters: list[nn.Parameter], loss: Tensor, rider: Tensor, mesh: Mesh) -> list[Tensor]:
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    sums = [torch.zeros_like(p) if g is None else g.clone() for p, g in zip(parameters, grads, strict=True)]
    sums.append(rider.clone())
    all_reduce_flat(sums, mesh.dense)
    return sums


def _assert_equal(parameters: list[nn.Parameter], rider: Tensor, expected: list[Tensor]) -> None:
    for p, right in zip(parameters, expected, strict=False):
        assert p.grad is not None and torch.equal(p.grad, right)
    assert torch.equal(rider, expected[-1])


def _steps(rank: int, device: str) -> None:
    mesh = build_mesh(WORLD, 1, device=device, timeout_s=60)
    parameters = _parameters(device)
    gradients = GradientSum(parameters, mesh.dense)
    for step in range(3):
        rider = torch.full((), rank + 0.1, device=device)
        expected = _sums_apart(parameters, _loss(parameters, rank, step), rider, mesh)
        for p in parameters:
            p.grad = None
        traffic.reset()
        with gradients.during(rider):
            _loss(parameters, rank, step).backward()
            assert traffic.sent_bytes(), "the message has left before anybody waits"
        _assert_equal(parameters, rider, expected)


@devices
def test_sums_are_those_of_all_reduce_flat_bit_for_bit(device: str) -> None:
    run_ranks(_steps, WORLD, device, device=device)


def _unused_on_rank_0(rank: int) -> None:
    mesh = build_mesh(WORLD, 1, timeout_s=30)
    parameters = _parameters("cpu")
    gradients = GradientSum(parameters, mesh.dense)
    used = parameters[1:] if rank == 0 else parameters
    for _ in range(2):
        rider = torch.ones(2) * rank
        expected = _sums_apart(parameters, _loss(used, rank), rider, mesh)
        for p in parameters:
            p.grad = None
        traffic.reset()
        with gradients.during(rider):
            _loss(used, rank).backward()
            assert bool(traffic.sent_bytes()) == (rank != 0)
        _assert_equal(parameters, rider, expected)


def test_a_rank_that_does_not_use_a_parameter_sends_zeros_at_the_end() -> None:
    run_ranks(_unused_on_rank_0, WORLD)


def _frozen(rank: int) -> None:
    mesh = build_mesh(2, 1, timeout_s=30)
    parameters = _parameters("cpu")
    parameters[1].requires_grad_(False)
    gradients = GradientSum(parameters, mesh.dense)
    for thawed in (False, True):  # whatever it was when the sum was made
        parameters[1].requires_grad_(thawed)
        trained = [p for p in parameters if p.requires_grad]
        rider = torch.ones(2) * rank
        expected = _sums_apart(trained, _loss(parameters, rank), rider, mesh)
        for p in parameters:
            p.grad = None
        traffic.reset()
        with gradients.during(rider):
            _loss(parameters, rank).backward()
            assert bool(traffic.sent_bytes()) == (not thawed)
        _assert_equal(trained, rider, expected)
        assert thawed or parameters[1].grad is None


def test_frozen_parameters_are_left_out_as_long_as_they_are() -> None:
    run_ranks(_frozen, 2)


def _backward_alone(rank: int) -> None:
    mesh = build_mesh(2, 1, timeout_s=30)
    parameters = _parameters("cpu")
    gradients = GradientSum(parameters, mesh.dense)
    own = torch.autograd.grad(_loss(parameters, rank), parameters)
    traffic.reset()
    for _ in range(2):
        _loss(parameters, rank).backward()
    assert not traffic.sent_bytes()
    for p, grad in zip(parameters, own, strict=True):
        assert p.grad is not None and torch.equal(p.grad, grad + grad)
        p.grad = None

    with gradients.during():
        _loss(parameters, rank).backward()
    summed = [p.grad.clone() for p in parameters if p.grad is not None]
    traffic.reset()
    _loss(parameters, rank).backward()  # after a step it is a matter of the rank again
    assert not traffic.sent_bytes()
    assert all(
        p.grad is not None and torch.equal(p.grad, s + g) for p, s, g in zip(parameters, summed, own, strict=True)
    )


def test_a_backward_pass_that_nobody_announced_sums_nothing() -> None:
    run_ranks(_backward_alone, 2)


class _Failing(torch.autograd.Function):
    """Ends a backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise ArithmeticError


def _after_a_failed_backward(rank: int) -> None:
    mesh = build_mesh(2, 1, timeout_s=30)
    parameters = _parameters("cpu")
    gradients = GradientSum(parameters, mesh.dense)
    own = torch.autograd.grad(_loss(parameters, rank), parameters)
    for failing in (0, 3):  # before and after gradients have come
        with pytest.raises(ArithmeticError), gradients.during():
            used = [_Failing.apply(p) if i == failing else p for i, p in enumerate(parameters)]
            _loss(used, rank).backward()
        traffic.reset()
        for p in parameters:
            p.grad = None
        if rank == 0:  # alone, and nobody announced it
            _loss(parameters, rank).backward()
            assert not traffic.sent_bytes()
            assert all(torch.equal(p.grad, grad) for p, grad in zip(parameters, own, strict=True))  # type: ignore
        for p in parameters:
            p.grad = None
        rider = torch.ones(1)
        expected = _sums_apart(parameters, _loss(parameters, rank), rider, mesh)
        with gradients.during(rider):
            _loss(parameters, rank).backward()
        _assert_equal(parameters, rider, expected)


def test_after_a_failed_backward_pass_the_next_is_a_step_of_its_own() -> None:
    run_ranks(_after_a_failed_backward, 2)


def _riders_alone(rank: int) -> tuple[float, dict]:
    mesh = build_mesh(2, 1, timeout_s=30)
    gradients = GradientSum([], mesh.dense)
    traffic.reset()
    with gradients.during():
        pass
    sent_nothing = traffic.sent_bytes()
    rider = torch.tensor(rank + 1.0)
    with gradients.during(rider):
        pass
    return rider.item(), sent_nothing


def test_riders_need_no_parameters_and_nothing_sends_nothing() -> None:
    assert run_ranks(_riders_alone, 2) == [(3.0, {})] * 2
