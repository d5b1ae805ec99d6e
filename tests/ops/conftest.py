"""Tests of ops that run on every device: the same oracles, which stay on the CPU, and the same tolerances."""

import pytest

from dmt_kernels import ops
from tests.devices import on_cuda, there
from tests.ops import updates

MOVED = [
    "dot_interaction", "embedding_bag", "embedding_bag_", "embedding_update_", "tower_pool",
    "tower_pool_pooled_backward", "tower_pool_weight_backward", "wire_decode", "wire_encode",
]  # fmt: skip


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=on_cuda)])
def device(request, monkeypatch):
    """On another device than the CPU, what the test's module calls runs there."""
    if request.param != "cpu":
        for name in MOVED:
            for module in (request.module, updates):
                if getattr(module, name, None) is getattr(ops, name):
                    monkeypatch.setattr(module, name, there(getattr(ops, name), request.param))
    return request.param
