"""Dense gradients: one flat buffer, one all-reduce, which starts when the last gradient is there."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmt_kernels.ops import traffic
from dmt_kernels.ops.groups import naming_failures


def all_reduce_flat(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Sum tensors over a group, in place, through one flat buffer.

    Parameters
    ----------
    tensors : sequence of Tensor
        The same shapes and order on every rank; one dtype. The order fixes which bits the sum has.
    group : ProcessGroup
        Over whom.

    Raises
    ------
    ExchangeError
        A rank of the group died, or did not answer within the group's timeout.
    """
    if tensors:
        _FlatSum(tensors, group).finish()


class GradientSum:
    """Sums the gradients of parameters over a group, step by step; the message travels under the backward pass.

    It starts when autograd has the gradients of all the parameters, and otherwise at the end: a parameter that this
    rank's batch does not use may be used on another. Which of the two is the model's affair, the same on all ranks
    if all use the same parameters.

    Parameters
    ----------
    parameters : sequence of Parameter
        The same shapes and order on every rank; one dtype. The order fixes which bits the sums have. Frozen ones
        (``requires_grad`` is not set, on all ranks alike) are left out as long as they are.
    group : ProcessGroup
        Over whom.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
        self._parameters, self._group = list(parameters), group
        self._missing = 0  # gradients that the backward pass has not come to yet; 0 where none is announced
        self._riders: list[Tensor] = []
        self._sum: _FlatSum | None = None
        for p in self._trained():
            p.register_post_accumulate_grad_hook(self._count)

    @contextlib.contextmanager
    def during(self, *riders: Tensor) -> Iterator[None]:
        """Sum the gradients of the backward pass inside; at the end ``grad`` holds the sums.

        A loss of :meth:`~dmt_kernels.embedding.EmbeddingExchange.finish_into_loss` is made before, and only its
        ``backward`` is inside: what has all gradients of a chunk would take them for those of the batch.

        If what is inside fails, nothing is summed that has not left already, and nobody waits for that.

        Parameters
        ----------
        *riders : Tensor
            Summed along with the gradients, in place.

        Raises
        ------
        ExchangeError
            A rank of the group died, or did not answer within the group's timeout.
        """
        self._missing, self._riders = len(self._trained()), list(riders)
        try:
            yield
            self._missing = 0
            if self._sum is None and (self._trained() or self._riders):
                self._start()
            if self._sum is not None:
                self._sum.finish()
        finally:
            self._missing, self._riders, self._sum = 0, [], None

    def _count(self, parameter: Tensor) -> None:
        if self._missing:
            self._missing -= 1
            if not self._missing:
                self._start()

    def _start(self) -> None:
        for p in self._trained():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        self._sum = _FlatSum([*(p.grad for p in self._trained() if p.grad is not None), *self._riders], self._group)

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self._parameters if p.requires_grad]


class _FlatSum:
    def __init__(self, tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
        self._tensors, self._group = tensors, group
        self._flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        traffic.count_all_reduce(group.group_name, self._flat.nbytes)
        with naming_failures(group.group_name, "sent its gradients"):
            self._work = dist.all_reduce(self._flat, group=group, async_op=True)

    def finish(self) -> None:
        with naming_failures(self._group.group_name, "waited for the sum of gradients"):
            self._work.wait()
        for tensor, reduced in zip(self._tensors, self._flat.split([t.numel() for t in self._tensors]), strict=True):
            tensor.copy_(reduced.view_as(tensor))
