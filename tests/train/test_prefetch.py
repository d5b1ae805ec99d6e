"""Steps whose ids were sent ahead are the steps they would have been."""

import pytest
import torch

from dmt_kernels.comm import build_mesh
from dmt_kernels.ops import IdExchange
from dmt_kernels.train.assemble import build_model, make_loader, set_up
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.loop import Trainer
from dmt_kernels.train.predict import evaluate
from dmt_kernels.train.step import TrainStep
from tests.ranks import run_ranks

STEPS = 5
CONFIG = TrainConfig(data="synthetic:320", exchange="sptt", towers=2, members=1, batch_size=32, embedding_dim=8)


def _train(rank: int, local: bool) -> None:
    mesh = None if local else build_mesh(2, 1, timeout_s=30)
    results = []
    for ahead in (False, True):
        setup = set_up(CONFIG)
        model = build_model(setup, mesh)
        step = TrainStep(model, mesh, optimizer="adam", lr=0.01)
        batches = list(make_loader(setup, "train", mesh, torch.device("cpu"), shuffle=True))[:STEPS]
        losses = []
        for i, batch in enumerate(batches):
            following = batches[i + 1] if ahead and i + 1 < STEPS else None
            losses.append(step(batch, following))
            if i == 2:
                evaluate(model, batches[:1], mesh)  # other batches in between change nothing
        results.append([torch.stack(losses), *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_on_ranks() -> None:
    run_ranks(_train, 2, False)


def test_in_one_process() -> None:
    _train(0, True)


def _count_exchanges(rank: int, steps: int) -> tuple[list, list, int]:
    """Of a run: the steps whose exchanges began, the step that each step sent ahead, and the steps of an epoch."""
    begun, trained = [], []
    begin, train = IdExchange.__init__, TrainStep.__call__

    def beginning(self, sparse, *arguments, **options):
        begun.append(sparse)
        begin(self, sparse, *arguments, **options)

    def training(self, batch, next_batch=None):
        trained.append((batch, next_batch))
        return train(self, batch, next_batch)

    IdExchange.__init__, TrainStep.__call__ = beginning, training  # type: ignore[method-assign]
    config = TrainConfig(**{**CONFIG.__dict__, "steps": steps})
    trainer = Trainer(set_up(config), build_mesh(2, 1, timeout_s=30))
    trainer.run()
    numbers = {id(batch.sparse): i for i, (batch, _) in enumerate(trained)}
    ahead = [None if following is None else numbers[id(following.sparse)] for _, following in trained]
    return [numbers[id(sparse)] for sparse in begun if id(sparse) in numbers], ahead, len(trainer.loaders["train"])


@pytest.mark.parametrize("steps", [1, 3, 13])
def test_the_loop_sends_each_batch_once_and_one_ahead(steps: int) -> None:
    for begun, ahead, per_epoch in run_ranks(_count_exchanges, 2, steps):
        last = [i for i in range(steps) if i % per_epoch == per_epoch - 1 or i == steps - 1]
        assert per_epoch < 13, "a run of 13 steps has two epochs"
        assert begun == list(range(steps))
        assert ahead == [None if i in last else i + 1 for i in range(steps)]
