"""What every feature is worth to a model."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmt_kernels.spec import derive_seed
from dmt_kernels.train.flat_run import FlatRun

_AT_A_TIME = 1024  # rows: dot products of many features are wide
# Many features are many passes, all of them wide.
_VALUES = 2**19  # rows of all passes together
_LEAST = 512  # rows of each, whatever they come to


@torch.no_grad()
def permutation_importance(run: FlatRun, seed: int = 0) -> list[float]:
    """Return how much log loss it costs to shuffle each feature among rows, in the order of the tables.

    As in Breiman, "Random forests", 2001, but for pooled embeddings in place of a feature's values: a feature that
    tells the model nothing on rows it has not seen costs nothing, however large its table. (Of data without a
    validation split all rows are seen.)

    Parameters
    ----------
    run : FlatRun
        The model and the rows; with more than 64 features fewer of them are used, 512 at least.
    seed : int
        Of the order that rows are shuffled into.
    """
    given = _Given([sum(run.dims)])
    exchange, run.model.exchange = run.model.exchange, given
    try:
        rows = min(len(run.pooled), max(_LEAST, _VALUES // len(run.dims)))
        run = dataclasses.replace(run, dense=run.dense[:rows], pooled=run.pooled[:rows], label=run.label[:rows])
        generator = torch.Generator("cpu").manual_seed(derive_seed(seed, "importance"))
        order = torch.randperm(len(run.pooled), generator=generator, device="cpu").to(run.pooled.device)
        base, costs, column, shuffled = _log_loss(run, run.pooled, given), [], 0, run.pooled.clone()
        for dim in run.dims:
            own = slice(column, column + dim)
            shuffled[:, own] = run.pooled[order, own]
            costs.append(_log_loss(run, shuffled, given) - base)
            shuffled[:, own] = run.pooled[:, own]
            column += dim
        return costs
    finally:
        run.model.exchange = exchange


class _Given(nn.Module):
    """Stands for an exchange whose pooled embeddings are known."""

    def __init__(self, out_widths: Sequence[int]) -> None:
        super().__init__()
        self.out_widths = out_widths
        self.pooled: Tensor | None = None

    def forward(self, sparse: object) -> Tensor | None:
        return self.pooled


def _log_loss(run: FlatRun, pooled: Tensor, given: _Given) -> float:
    logits = []
    for dense, part in zip(run.dense.split(_AT_A_TIME), pooled.split(_AT_A_TIME), strict=True):
        given.pooled = part
        logits.append(run.model(dense, None))
    return float(functional.binary_cross_entropy_with_logits(torch.cat(logits).double(), run.label.double()))
