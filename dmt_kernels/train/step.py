"""One training step: loss, gradients, their sums over ranks, the dense optimizer."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmt_kernels.comm import GradientSum, Mesh, check_agreement, digest_of
from dmt_kernels.ops import MissingIdWatch
from dmt_kernels.spec import Batch, InputError

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adagrad": torch.optim.Adagrad,
}


class TrainStep:
    """Trains a model on one batch per call; all ranks call it together.

    Parameters
    ----------
    model : nn.Module
        Called with ``(dense, sparse)``, returns logits ``[B]``. If its ``forward`` has parameters ``loss`` and
        ``targets``, it is given the loss, too, and returns that (:class:`~dmt_kernels.models.Model`): an exchange in
        chunks has less to wait for then. ``model.exchange`` updates its tables in the backward pass;
        ``model.exchange.tower_modules`` is replicated on the ranks of a tower, of ``model.exchange.tower_slices`` every
        rank has its own, and every other parameter is on all ranks. ``model.expand``, if there is one, is the map
        behind the towers.
    mesh : Mesh or None
        The ranks; None for one process.
    optimizer : {"adam", "adagrad"}
        Of everything but the tables.
    lr : float
        Its learning rate.
    tower_lr : float or None
        That of tower modules and of the map behind them; None: `lr`, too. Maps in a row add their steps up, so where
        `lr` is high they need a lower one (docs/trials.md).
    amp : bool
        Multiply in bfloat16 (``torch.autocast``): the over-arch's layers and the tower modules. Parameters, sums, dot
        products of features and the loss stay as they are.

    Raises
    ------
    InputError
        For an unknown optimizer, or, on all ranks, if parameters that are on all of them differ.
    """

    def __init__(
        self,
        model: nn.Module,
        mesh: Mesh | None,
        *,
        optimizer: str,
        lr: float,
        tower_lr: float | None = None,
        amp: bool = False,
    ) -> None:
        if optimizer not in _OPTIMIZERS:
            raise InputError(f"dense optimizer {optimizer!r} is unknown; choose one of {', '.join(_OPTIMIZERS)}")
        self.model, self.amp = model, amp
        self._takes_loss = {"loss", "targets"} <= inspect.signature(model.forward).parameters.keys()
        self._exchange: Any = model.exchange
        self.mesh = mesh
        self._over_arch_sum = self._tower_sum = None
        self.over_arch = in_name_order(over_arch_parameters(model))
        self.tower_module = in_name_order(tower_parameters(model))
        if mesh is not None:
            self._over_arch_sum = GradientSum(self.over_arch, mesh.dense)
            self._tower_sum = GradientSum(self.tower_module, mesh.tower_dense)
            check_agreement(
                [("values of the over-arch", digest_of(over_arch_parameters(model)))], mesh.dense, mesh.device
            )
        self.missing_ids = MissingIdWatch(next(model.parameters()).device)
        # Slices have whole gradients where they are, so nothing of them is summed, and so has their optimizer state.
        in_a_row = {**tower_parameters(model), **slice_parameters(model), **expansion_parameters(model)}
        others = {name: p for name, p in over_arch_parameters(model).items() if name not in in_a_row}
        rates = [(in_name_order(others), lr), (in_name_order(in_a_row), lr if tower_lr is None else tower_lr)]
        groups = [{"params": parameters, "lr": rate} for parameters, rate in rates if parameters]
        self.optimizer: torch.optim.Optimizer = _OPTIMIZERS[optimizer](groups, lr=lr)

    def __call__(self, batch: Batch, next_batch: Batch | None = None) -> Tensor:
        """Train on this rank's share of a global batch and return the global loss, a 0-dim tensor.

        Parameters
        ----------
        batch : Batch
            What to train on.
        next_batch : Batch or None
            What the next call will train on, this very object, so that its ids travel meanwhile; on all ranks or none.

        Raises
        ------
        RuntimeError
            On CUDA: ids of an earlier batch, or of this one, are out of range, and its tables were not updated.
        """
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        total = loss.detach().clone()
        if next_batch is not None:  # its lengths arrive during what follows, and its ids after the backward pass
            self._exchange.prefetch(next_batch.sparse)
        with contextlib.ExitStack() as sums:
            if self._tower_sum is not None and self._over_arch_sum is not None:
                sums.enter_context(self._over_arch_sum.during(total))  # the loss rides along: no collective of its own
                sums.enter_context(self._tower_sum.during())
            loss.backward()
            if next_batch is not None:
                self._exchange.advance()
        self.optimizer.step()
        self.missing_ids.poll()
        return total

    def loss(self, batch: Batch) -> Tensor:
        """Return this rank's share of the loss, a scalar, whose ``backward`` is called as it is."""
        like = next(self.model.parameters())

        def share(logits: Tensor, *targets: Tensor) -> Tensor:
            with torch.autocast(like.device.type, enabled=False) if self.amp else contextlib.nullcontext():
                return self.share(logits.to(like.dtype), *targets, global_samples=batch.global_samples)

        targets = batch.label, batch.weight
        with mixed_precision(like.device, amp=self.amp):
            dense = batch.dense.to(like.dtype)
            if self._takes_loss:
                return self.model(dense, batch.sparse, loss=share, targets=targets)
            return share(self.model(dense, batch.sparse), *targets)

    def share(self, logits: Tensor, label: Tensor, weight: Tensor, *, global_samples: int) -> Tensor:
        """Return the share that some of this rank's samples have in the loss; another loss is a subclass with another.

        The sum of weight times binary cross-entropy over the samples, divided by the real samples of the global batch.

        Parameters
        ----------
        logits, label, weight : Tensor
            ``[b]`` each; the label and weight as in :class:`~dmt_kernels.spec.Batch`.
        global_samples : int
            Real samples of the *global* batch.

        Returns
        -------
        Tensor
            A scalar. Shares add up to the loss, over chunks of samples and over ranks, and so do their gradients.
        """
        losses = F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype), reduction="none")
        return (losses * weight).sum() / global_samples


def mixed_precision(device: torch.device, *, amp: bool) -> contextlib.AbstractContextManager[object]:
    """Where to multiply in bfloat16 if `amp`; otherwise whatever the caller's ``torch.autocast`` says holds on."""
    return torch.autocast(device.type, torch.bfloat16) if amp else contextlib.nullcontext()


def predict_logits(model: nn.Module, batch: Batch, *, amp: bool = False) -> Tensor:
    """Return logits ``[B]``, in the model's dtype; multiplied in bfloat16 if `amp`."""
    like = next(model.parameters())
    with mixed_precision(like.device, amp=amp):
        return model(batch.dense.to(like.dtype), batch.sparse).to(like.dtype)


def tower_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the tower modules this rank holds, by name in the model."""
    prefix = "exchange.tower_modules."
    return {name: p for name, p in model.named_parameters() if name.startswith(prefix)}


def slice_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the slice of its tower module that this rank alone holds, by name in the model."""
    prefix = "exchange.tower_slices."
    return {name: p for name, p in model.named_parameters() if name.startswith(prefix)}


def over_arch_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that every rank holds, by name in the model."""
    return {name: p for name, p in model.named_parameters() if not name.startswith("exchange.")}


def expansion_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the map of what towers compressed to the flat model's features, by name; none without one."""
    return {name: p for name, p in over_arch_parameters(model).items() if name.startswith("expand.")}


def in_name_order(parameters: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
    """Parameters sorted by name: the order in which gradients are summed, whatever order modules were built in."""
    return [parameters[name] for name in sorted(parameters)]
