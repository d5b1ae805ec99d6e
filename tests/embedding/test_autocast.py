"""Under ``torch.autocast`` tower modules multiply in bfloat16 on every road; all else, and all dtypes, stay."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from dmt_kernels.ops.kept_rows import rounded_product
from dmt_kernels.spec import TableOptimizer, Topology
from tests.embedding.worlds import SAMPLES, World, build, global_batch, jagged
from tests.ranks import run_ranks

TOPOLOGY = Topology(2, 2)
SGD = World(TOPOLOGY, optimizer=TableOptimizer("sgd", lr=0.1), chunks=2)  # an update is a gradient
OWNER = replace(SGD, tower="linear", placement="owner")
WORLDS = {
    "linear": replace(SGD, tower="linear"),
    "linear, a table replicated": replace(SGD, tower="linear", splits=(("users", "replicated"),)),
    "owner": OWNER,
    "cross": replace(SGD, tower="cross"),
    "custom": replace(SGD, tower="custom"),
    "pass": replace(SGD, tower="pass"),
    "float64": replace(SGD, tower="linear", dtype=torch.float64),
}
ROUNDING = 2.0**-8  # of a bfloat16


def _step(world: World, rank: int | None, narrow: torch.dtype | None) -> dict[str, Tensor]:
    """Outputs, gradients and tables of one step."""
    exchange = build(world, "sptt", rank)
    ids, weights, _ = global_batch(world, exchange.features, 0)
    samples = SAMPLES * TOPOLOGY.world
    mine = slice(0, samples) if rank is None else slice(rank * SAMPLES, (rank + 1) * SAMPLES)
    with torch.autocast("cpu", narrow or torch.bfloat16, enabled=narrow is not None):
        out = exchange(jagged(world, ids, weights, mine.start, mine.stop))
    grad = torch.linspace(0.5, 1.5, samples * out.shape[1], dtype=world.dtype).view(samples, -1)  # nothing cancels
    out.backward(grad[mine])
    grads = {f"gradient of {name}": p.grad for name, p in exchange.named_parameters() if p.grad is not None}
    return {"outputs": out.detach(), **exchange.shards.state_dict(), **grads}


def _steps(rank: int | None) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    worlds = WORLDS if rank is not None else {name: world for name, world in WORLDS.items() if name != "owner"}
    return {name: (_step(world, rank, None), _step(world, rank, torch.bfloat16)) for name, world in worlds.items()}


@pytest.fixture(scope="module")
def steps() -> list[dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]]:
    return [*run_ranks(_steps, TOPOLOGY.world), _steps(None)]


@pytest.mark.parametrize("name", WORLDS)
def test_values_are_those_of_float32_to_the_rounding_of_bfloat16(steps, name) -> None:
    for exact, rounded in (process[name] for process in steps if name in process):
        assert exact.keys() == rounded.keys()
        off = {what: float((rounded[what] - value).norm()) for what, value in exact.items()}
        for what, value in exact.items():
            assert rounded[what].dtype == value.dtype, what
            assert off[what] <= 4 * ROUNDING * float(value.norm()), f"{what}: {off[what]}"
        multiplied = [what for what in exact if what == "outputs" or what.endswith("weight")]
        assert all((off[what] > 0) == (name not in ("pass", "float64")) for what in multiplied), off


def _keeping(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """A step of owners that look up twice, one of those that keep their rows, as GPUs do, and its products of them."""
    twice = _step(OWNER, rank, torch.bfloat16)
    products = Mock(side_effect=rounded_product)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmt_kernels.embedding.owner_flight.is_for_library", lambda weight, *_: weight.numel() > 0)
        patch.setattr("dmt_kernels.embedding.owner_flight.rounded_product", products)
        kept = _step(OWNER, rank, torch.bfloat16)
    return twice, kept, products.call_count


def test_owners_that_keep_pooled_rows_train_the_same() -> None:
    for twice, kept, products in run_ranks(_keeping, TOPOLOGY.world):
        assert products == 2 * OWNER.chunks
        assert twice.keys() == kept.keys()
        for what, value in twice.items():
            assert kept[what].dtype == value.dtype
            assert float((kept[what] - value).norm()) <= ROUNDING * float(value.norm()), what


def _in_float16(rank: int) -> dict[str, tuple[torch.dtype, float]]:
    """Outputs on either road, and how far they are from float32's."""
    found = {}
    for name in ("linear", "owner"):
        exact = _step(WORLDS[name], rank, None)["outputs"]
        rounded = _step(WORLDS[name], rank, torch.float16)["outputs"]
        found[name] = rounded.dtype, float((rounded - exact).norm() / exact.norm())
    return found


def test_float16_rounds_at_members_and_not_at_owners() -> None:
    for found in run_ranks(_in_float16, TOPOLOGY.world):
        assert found["linear"][0] == found["owner"][0] == torch.float32
        assert 0 < found["linear"][1] < 2.0**-10
        assert found["owner"][1] == 0
