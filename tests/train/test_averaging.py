"""Averaged weights: those of the formula, out of the way of training, and what a run scores and keeps."""

import pytest
import torch
from torch import nn

from dmt_kernels.spec import Topology
from dmt_kernels.train.assemble import set_up
from dmt_kernels.train.averaging import AveragedWeights
from dmt_kernels.train.config import TrainConfig, resolve_topology
from dmt_kernels.train.loop import Trainer
from dmt_kernels.train.predict import evaluate
from tests.embedding.worlds import World, build

OPTIONS = {"data": "synthetic:600", "batch_size": 64, "embedding_dim": 8, "towers": 2, "tower_module": "dlrm"}


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.exchange = build(World(Topology(2, 1)), "sptt", None)
        self.over_arch = nn.Linear(3, 1)

    def weights(self):
        return [*self.parameters(), *self.exchange.shards.tables.buffers()]


@pytest.mark.parametrize(("decay", "every"), [(0.5, 1), (0.9, 1), (0.98, 5)])
def test_the_average_is_the_plain_mean_of_snapshots_that_then_decay(decay, every):
    model = _Model()
    average = AveragedWeights(model, decay, steps=10**6)
    expected, snapshots = None, 0
    for step in range(1, 16 * every + 1):
        with torch.no_grad(), average.set_aside():
            for weight in model.weights():
                weight.copy_(torch.full_like(weight, float(step % 7)))
            average.step()
        if step % every == 0:
            old = min(decay**every, snapshots / (snapshots + 1))
            expected = step % 7 if expected is None else old * expected + (1 - old) * (step % 7)
            snapshots += 1
        shown = step % 7 if expected is None else expected
        for weight in model.weights():
            torch.testing.assert_close(weight, torch.full_like(weight, shown))


def test_a_run_shorter_than_the_average_is_averaged_over():
    model = _Model()
    average = AveragedWeights(model, 0.999, steps=20)  # every second one
    for step in range(1, 21):
        with torch.no_grad(), average.set_aside():
            for weight in model.weights():
                weight.fill_(float(step))
            average.step()
    for weight in model.weights():
        torch.testing.assert_close(weight, torch.full_like(weight, 11.0))


def trained(decay):
    """A trainer that has trained for three epochs, and its summary."""
    config = TrainConfig(**OPTIONS, local=True, epochs=3, average_weights=decay)
    trainer = Trainer(set_up(resolve_topology(config, None, None)), None)
    return trainer, trainer.run()


def test_a_run_trains_without_the_average_and_scores_it():
    (plain, last), (averaged, figures) = trained(None), trained(0.9)
    assert figures["auc"] == evaluate(averaged.model, averaged.loaders["test"], None).auc != last["auc"]
    with averaged.average.set_aside():
        state = averaged.model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in plain.model.state_dict().items())
