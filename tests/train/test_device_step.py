"""A step of one process never waits for its device: on a device without memory, asking it for a number is an error."""

import pytest
import torch

from dmt_kernels.spec import Batch, Jagged
from dmt_kernels.train.assemble import build_model, make_loader, set_up
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.loop import Trainer
from dmt_kernels.train.step import TrainStep


def test_a_local_step_asks_its_device_for_nothing(monkeypatch):
    config = TrainConfig(
        data="synthetic:300", local=True, towers=2, members=2, tower_module="dlrm", batch_size=64, epochs=1,
        device="cpu",
    )  # fmt: skip
    setup = set_up(config)
    model = build_model(setup, None)
    batch = next(iter(make_loader(setup, "train", None, torch.device("cpu"))))
    exchange = model.exchange
    assert exchange._route != list(range(len(exchange.features))), "features are looked up in another order"
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.device.type == "meta"))
    step = TrainStep(model.to("meta"), None, optimizer="adagrad", lr=0.1)
    dense, label, weight = (tensor.to("meta") for tensor in (batch.dense, batch.label, batch.weight))
    bags = Jagged(batch.sparse.ids.to("meta"), batch.sparse.offsets.to("meta"))
    loss = step(Batch(dense, bags, label, weight, batch.global_samples))
    assert loss.device.type == "meta" and loss.shape == ()


def test_bad_ids_of_an_epoch_are_raised_before_it_is_kept(monkeypatch):
    config = TrainConfig(
        data="synthetic:300", local=True, towers=2, members=1, tower_module="dlrm", batch_size=64, epochs=2,
        device="cpu", early_stop=1, log_every=1000,
    )  # fmt: skip
    trainer = Trainer(set_up(config), None)

    def bad_ids():
        raise RuntimeError("id 77")

    monkeypatch.setattr(trainer.train_step.missing_ids, "wait", bad_ids)
    monkeypatch.setattr(trainer, "_keep", lambda: pytest.fail("was kept"))
    with pytest.raises(RuntimeError, match="^id 77"):
        trainer.run()
