"""Steps whose ids were sent ahead are the steps they would have been."""

import pytest
import torch

from dmt_kernels.comm import build_mesh, reduce
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


def _order_of_steps(rank: int) -> list[list[str]]:
    """What happens in each of three steps, in order, batches by their numbers."""
    mesh = build_mesh(2, 1, timeout_s=30)
    setup = set_up(CONFIG)
    step = TrainStep(build_model(setup, mesh), mesh, optimizer="adam", lr=0.01)
    batches = list(make_loader(setup, "train", mesh, torch.device("cpu"), shuffle=True))[:3]
    numbers: dict[int, int] = {id(batch.sparse): i for i, batch in enumerate(batches)}
    events: list[str] = []
    begin, advance, compute_loss = IdExchange.__init__, IdExchange.advance, TrainStep.loss
    go_back, finish = torch.Tensor.backward, reduce._FlatSum.finish

    def beginning(self, sparse, *arguments, **options):
        events.append(f"lengths of {numbers[id(sparse)]} leave")
        begin(self, sparse, *arguments, **options)
        numbers[id(self)] = numbers[id(sparse)]

    def advancing(self):
        if self._ids is None:
            events.append(f"ids of {numbers[id(self)]} leave")
        advance(self)

    def computing_loss(self, batch):
        loss = compute_loss(self, batch)
        events.append("forward ends")
        return loss

    def going_back(self, *arguments, **options):
        go_back(self, *arguments, **options)
        events.append("backward ends")

    def finishing(self):
        events.append("a sum is waited for")
        finish(self)

    IdExchange.__init__, IdExchange.advance = beginning, advancing  # type: ignore[method-assign]
    TrainStep.loss, torch.Tensor.backward = computing_loss, going_back  # type: ignore[method-assign, assignment]
    reduce._FlatSum.finish = finishing  # type: ignore[method-assign]
    steps = []
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        step(batch, following)
        steps.append(list(events))
        events.clear()
    return steps


def test_the_next_ids_travel_under_the_backward_pass_and_the_sums() -> None:
    def with_next(i: int) -> list[str]:
        ahead = ["forward ends", f"lengths of {i} leave", "backward ends", f"ids of {i} leave"]
        return [*ahead, summed]

    summed = "a sum is waited for"  # of the over-arch: there are no tower modules
    for steps in run_ranks(_order_of_steps, 2):
        assert steps == [
            ["lengths of 0 leave", "ids of 0 leave", *with_next(1)],
            with_next(2),  # and its own ids are those that were sent ahead
            ["forward ends", "backward ends", summed],
        ]
