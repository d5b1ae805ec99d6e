"""Models on disk that this version has not written, or not for this model."""

import pytest
import torch
from torch import nn

from dmt_kernels.spec import InputError, TableOptimizer, Topology
from dmt_kernels.train import checkpoint
from tests.embedding.worlds import World, build

BFLOAT16 = World(Topology(2, 1), dtype=torch.bfloat16)


class _Model(nn.Module):
    def __init__(self, width=3, world=BFLOAT16):
        super().__init__()
        self.exchange = build(world, "sptt", None)
        self.over_arch = nn.Linear(width, 1)


def test_16_bit_tables_of_before_there_were_steps_begin_at_none(tmp_path):
    old, new = _Model(), _Model()
    old.exchange.shards.step = None
    new.exchange.shards.step += 3
    checkpoint.save(old, tmp_path / "model", None)
    with torch.no_grad():
        new.over_arch.weight.zero_()
    checkpoint.load(new, tmp_path / "model", None)
    assert new.exchange.shards.step == 0
    assert torch.equal(new.over_arch.weight, old.over_arch.weight)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"width": 4}, "over_arch.weight"),
        ({"world": World(Topology(2, 1), dtype=torch.bfloat16, optimizer=TableOptimizer("sgd", lr=0.1))}, "states"),
    ],
    ids=["another size", "something missing"],
)
def test_a_model_of_another_shape_is_said_in_one_sentence(other, reason, tmp_path):
    checkpoint.save(_Model(**other), tmp_path / "model", None)
    with pytest.raises(InputError, match=rf"model cannot be read into this model: .*{reason}"):
        checkpoint.load(_Model(), tmp_path / "model", None)
