"""Modules of the user's: taken when per-sample, refused with a sentence when not."""

import pytest
import torch
from torch import nn

from dmt_kernels.spec import InputError
from dmt_kernels.towers import CustomTower

DIMS = (2, 4)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 3)),
        nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2), nn.Flatten(), nn.Linear(6, 3)),
        Lambda(lambda self, x: x[:, :3]),
        nn.Linear(6, 3, dtype=torch.float64),
        nn.Linear(6, 3, dtype=torch.bfloat16),
    ],
    ids=["layer_norm_dropout", "instance_norm", "no_parameters", "float64", "bfloat16"],
)
def test_per_sample_modules_are_taken(module):
    tower = CustomTower(module, DIMS)
    assert (tower.in_width, tower.out_width) == (6, 3)
    x = torch.randn(5, 6).to(next(module.parameters(), torch.empty(0)))
    tower.eval()
    assert torch.equal(tower(x), module(x))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), "'1' of tower module Sequential is a BatchNorm1d"),
        (nn.BatchNorm1d(6), "^tower module BatchNorm1d is a BatchNorm1d"),
        (nn.SyncBatchNorm(6), "is a SyncBatchNorm"),
        (nn.InstanceNorm1d(2, track_running_stats=True), "is a InstanceNorm1d"),
        (Lambda(lambda self, x: x - x.mean(0)), "Lambda is not per-sample"),
        (Lambda(lambda self, x: x - x.mean(0) if self.training else x), "Lambda is not per-sample"),
        (nn.Linear(5, 3), r"Linear fails on an input of shape \[5, 6\]"),
        (nn.Unflatten(1, (2, 3)), r"must return a floating \[5, C\] for \[5, 6\], not torch.float32 \[5, 2, 3\]"),
        (Lambda(lambda self, x: x.T), r"not torch.float32 \[6, 5\]"),
        (Lambda(lambda self, x: x.long()), r"not torch.int64 \[5, 6\]"),
        (Lambda(lambda self, x: (x, x)), "not tuple"),
        (Lambda(lambda self, x: x[:, :0]), "positive widths"),
    ],
)
def test_others_are_refused(module, message):
    with pytest.raises(InputError, match=message):
        CustomTower(module, DIMS)


def test_a_module_may_be_tried_in_inference_mode_and_write_to_its_input():
    with torch.inference_mode():
        tower = CustomTower(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 2)), (2, 3))
    x = torch.randn(4, 5)
    before = x.clone()
    tower(x)
    assert torch.equal(x, before)


def test_the_trial_leaves_no_trace():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return nn.functional.dropout(x, training=self.training)

    module, before = Counting().eval(), torch.get_rng_state()
    CustomTower(module, DIMS)
    assert module.calls == 0
    assert not module.training
    assert torch.equal(before, torch.get_rng_state())
