"""One training step: loss, gradients, their sums over ranks, the dense optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmt_kernels.comm import Mesh, all_reduce_flat
from dmt_kernels.spec import Batch


class TrainStep:
    """Trains a model on one batch per call; all ranks call it together.

    Parameters
    ----------
    model : nn.Module
        Called with ``(dense, sparse)``, returns logits ``[B]``. ``model.exchange`` updates its tables in the
        backward pass; ``model.exchange.tower_modules`` is replicated on the ranks of a tower and every
        other parameter on all ranks.
    mesh : Mesh or None
        The ranks; None for one process.
    optimizer : {"adam", "adagrad"}
        Of everything but the tables.
    lr : float
        Its learning rate.
    """

    def __init__(self, model: nn.Module, mesh: Mesh | None, *, optimizer: str, lr: float) -> None:
        self.model = model
        self._exchange: Any = model.exchange
        self.mesh = mesh
        self.over_arch = in_name_order(over_arch_parameters(model))
        self.tower_module = in_name_order(tower_parameters(model))
        parameters = [*self.over_arch, *self.tower_module]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(parameters, lr=lr, fused=True)
            if optimizer == "adam"
            else torch.optim.Adagrad(parameters, lr=lr)
        )

    def __call__(self, batch: Batch, next_batch: Batch | None = None) -> Tensor:
        """Train on this rank's share of a global batch and return the global loss, a 0-dim tensor.

        Parameters
        ----------
        batch : Batch
            What to train on.
        next_batch : Batch or None
            What the next call will train on, this very object, so that its ids travel meanwhile; on all ranks or none.
        """
        self.model.train()
        self.optimizer.zero_grad()
        loss = loss_share(predict_logits(self.model, batch), batch)
        # Lengths arrive during the backward pass, and ids during what follows it.
        if next_batch is not None:
            self._exchange.prefetch(next_batch.sparse)
        loss.backward()
        if next_batch is not None:
            self._exchange.advance()
        loss = loss.detach().reshape(1)
        if self.mesh is not None:
            all_reduce_flat(_gradients(self.tower_module), self.mesh.tower_dense)
            # The loss rides along with the gradients: no collective of its own.
            all_reduce_flat([*_gradients(self.over_arch), loss], self.mesh.dense)
        self.optimizer.step()
        return loss[0]


def predict_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return logits ``[B]``, in the model's dtype."""
    return model(batch.dense.to(next(model.parameters()).dtype), batch.sparse)


def loss_share(logits: Tensor, batch: Batch) -> Tensor:
    """Return this rank's share of the batch's loss, a scalar.

    The sum of weight times binary cross-entropy over the rank's samples, divided by the real samples
    of the *global* batch: the shares of all ranks add up to the loss, and so do their gradients.
    """
    losses = F.binary_cross_entropy_with_logits(logits, batch.label.to(logits.dtype), reduction="none")
    return (losses * batch.weight).sum() / batch.global_samples


def tower_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the tower modules this rank holds, by name in the model."""
    prefix = "exchange.tower_modules."
    return {name: p for name, p in model.named_parameters() if name.startswith(prefix)}


def over_arch_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that every rank holds, by name in the model."""
    return {name: p for name, p in model.named_parameters() if not name.startswith("exchange.")}


def in_name_order(parameters: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
    """Parameters sorted by name: the order in which gradients are summed, whatever order modules were built in."""
    return [parameters[name] for name in sorted(parameters)]


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    for p in parameters:
        if p.grad is None:  # not used by this batch on this rank, but perhaps on another
            p.grad = torch.zeros_like(p)
    return [p.grad for p in parameters if p.grad is not None]
