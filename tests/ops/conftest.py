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
    """On another device than the CPU, what the test's module calls runs there, if it calls it by the op's name."""
    named = {module: [name for name in MOVED if getattr(module, name, None) is getattr(ops, name)]
             for module in (request.module, updates)}  # fmt: skip
    assert named[request.module], f"{request.module.__name__} imports no op by its name: all would run on the CPU"
    if request.param != "cpu":
        for module, names in named.items():
            for name in names:
                monkeypatch.setattr(module, name, there(getattr(ops, name), request.param))
    return request.param
