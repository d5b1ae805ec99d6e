"""What all models share: an over-arch behind any exchange."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from dmt_kernels.embedding import EmbeddingExchange
from dmt_kernels.spec import Jagged


class Model(nn.Module, ABC):
    """An over-arch that treats samples alone, behind any exchange, whose chunks it works on as they arrive.

    Parameters
    ----------
    exchange : nn.Module
        Maps a :class:`Jagged` to ``[B, sum(exchange.out_widths)]``.
    """

    def __init__(self, exchange: nn.Module) -> None:
        super().__init__()
        self.exchange = exchange

    def forward(
        self,
        dense: Tensor,
        sparse: Jagged,
        loss: Callable[..., Tensor] | None = None,
        targets: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return logits, or their loss.

        Parameters
        ----------
        dense : Tensor
            ``[B, K]``.
        sparse : Jagged
            The bags of all features.
        loss : callable, optional
            Called with logits and the same samples' `targets`, for all samples at once or for one chunk after the
            other; returns a scalar, their share of the loss. ``zero_grad`` comes before, and ``backward`` is called
            once, on the result as it is: see :meth:`~dmt_kernels.embedding.EmbeddingExchange.finish_into_loss`.
        targets : sequence of Tensor
            ``[B, ...]`` each.

        Returns
        -------
        Tensor
            Logits ``[B]``; with `loss` the sum of its shares, a scalar.
        """
        if not isinstance(self.exchange, EmbeddingExchange):
            logits = self.logits(self.exchange(sparse), *self.beside(dense))
            return logits if loss is None else loss(logits, *targets)
        in_flight = self.exchange.start(sparse)
        beside = self.beside(dense)  # under the exchange's messages; and so is its backward
        if loss is None:
            return self.exchange.finish_into(in_flight, self.logits, *beside)

        def share(embeddings: Tensor, *rows: Tensor) -> Tensor:
            return loss(self.logits(embeddings, *rows[: len(beside)]), *rows[len(beside) :])

        return self.exchange.finish_into_loss(in_flight, share, *beside, *targets)

    @abstractmethod
    def beside(self, dense: Tensor) -> tuple[Tensor, ...]:
        """What meets the embeddings, ``[B, ...]`` each, of the dense input."""

    @abstractmethod
    def logits(self, embeddings: Tensor, *beside: Tensor) -> Tensor:
        """Return logits ``[b]`` of embeddings ``[b, sum(C_t)]`` and the same samples of what meets them."""
