"""Shares of the loss and of gradients add up to those of the whole batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dmt_kernels.spec import Batch, InputError, Jagged
from dmt_kernels.train.assemble import set_up
from dmt_kernels.train.config import TrainConfig, resolve_topology
from dmt_kernels.train.loop import Trainer
from dmt_kernels.train.step import (
    TrainStep,
    in_name_order,
    over_arch_parameters,
    predict_logits,
    tower_parameters,
)


class Exchange(nn.Module):
    """Embeddings of one feature; one tower module."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(12, dtype=torch.float64).view(6, 2) / 7)
        self.tower_modules = nn.ModuleDict({"0": nn.Linear(2, 2)})

    def forward(self, sparse):
        return self.tower_modules["0"](self.table[sparse.ids])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.exchange = Exchange()
        self.top = nn.Linear(5, 1)
        self.unused = nn.Parameter(torch.ones(3))
        self.double()

    def forward(self, dense, sparse):
        return self.top(torch.cat([dense, self.exchange(sparse)], dim=1)).squeeze(1)


def batch(first, last, real=7):
    """Rows [first, last) of a global batch of 8, of which ``real`` are real."""
    generator = torch.Generator().manual_seed(5)
    dense = torch.rand(8, 3, generator=generator)
    label = torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1])
    weight = (torch.arange(8) < real).float()
    ids = torch.tensor([0, 5, 2, 2, 1, 4, 3, 0])[first:last]
    offsets = torch.arange(last - first + 1)
    return Batch(dense[first:last], Jagged(ids, offsets), label[first:last], weight[first:last], real)


def test_shares_of_the_loss_add_up_to_the_mean_over_real_samples():
    logits = torch.linspace(-2, 2, 8, dtype=torch.float64)
    step = TrainStep(Model(), None, optimizer="adam", lr=0.1)
    whole = batch(0, 8)
    targets = (logits, whole.label, whole.weight)
    shares = [step.share(*(part[a : a + 2] for part in targets), global_samples=7) for a in range(0, 8, 2)]
    whole = F.binary_cross_entropy_with_logits(logits[:7], batch(0, 7).label.double())
    torch.testing.assert_close(sum(shares), whole, rtol=1e-14, atol=0)


def test_parameters_are_told_apart_by_who_holds_them():
    model = Model()
    assert sorted(over_arch_parameters(model)) == ["top.bias", "top.weight", "unused"]
    assert sorted(tower_parameters(model)) == ["exchange.tower_modules.0.bias", "exchange.tower_modules.0.weight"]
    assert [p.shape for p in in_name_order(over_arch_parameters(model))] == [(1,), (1, 5), (3,)]


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_a_step_in_one_process_is_a_step_of_the_optimizer(optimizer):
    model, twin = Model(), Model()
    train_step = TrainStep(model, None, optimizer=optimizer, lr=0.1)
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.Adagrad
    reference = kind(twin.parameters(), lr=0.1)
    for _ in range(3):
        loss = train_step(batch(0, 8))
        reference.zero_grad()
        expected = F.binary_cross_entropy_with_logits(
            twin(batch(0, 7).dense.double(), batch(0, 7).sparse), batch(0, 7).label.double()
        )
        expected.backward()
        reference.step()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], parameter, rtol=1e-9, atol=1e-12)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(InputError, match="dense optimizer 'sgd' is unknown; choose one of adam, adagrad"):
        TrainStep(Model(), None, optimizer="sgd", lr=0.1)


def test_a_run_trains_towers_at_their_rate():
    options = {"model": "dcn", "tower_module": "dcn", "towers": 2, "dense_lr": 0.02, "tower_lr": 0.003}
    config = resolve_topology(TrainConfig(data="synthetic:64", local=True, **options), None, None)
    trainer = Trainer(set_up(config), None)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.train_step.optimizer.param_groups:
        for parameter in group["params"]:
            is_tower = names[id(parameter)].startswith(("exchange.tower_modules.", "expand."))
            assert group["lr"] == (0.003 if is_tower else 0.02)


def test_a_tower_rate_of_0_freezes_towers():
    step = TrainStep(Model(), None, optimizer="adam", lr=0.1, tower_lr=0.0)
    assert [group["lr"] for group in step.optimizer.param_groups] == [0.1, 0.0]


def test_towers_and_the_map_behind_them_have_a_rate_of_their_own():
    model = Model()
    model.expand = torch.nn.Linear(2, 3, dtype=torch.float64)
    step = TrainStep(model, None, optimizer="adam", lr=0.1, tower_lr=0.02)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group["lr"]: sorted(names[id(p)] for p in group["params"]) for group in step.optimizer.param_groups}
    towers = ["exchange.tower_modules.0.bias", "exchange.tower_modules.0.weight", "expand.bias", "expand.weight"]
    assert found == {0.1: ["top.bias", "top.weight", "unused"], 0.02: towers}


@pytest.mark.parametrize(("amp", "outer", "narrow"), [(True, False, True), (False, False, False), (False, True, True)])
def test_layers_multiply_in_bfloat16_with_amp_or_in_an_autocast_of_the_callers(amp, outer, narrow):
    model, seen = Model().float(), []
    model.top.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=outer):
        logits = predict_logits(model, batch(0, 8), amp=amp)
    assert seen == [torch.bfloat16 if narrow else torch.float32]
    assert logits.dtype == torch.float32
