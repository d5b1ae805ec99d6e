"""One rank's share of a global batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that what is asked without a torch, `info` above all, can be answered without one
    from torch import Tensor


@dataclass(frozen=True)
class Jagged:
    """Bags of ids of ``F`` features for ``B`` samples, feature-major.

    Bag ``(f, b)`` is ``ids[offsets[f * B + b] : offsets[f * B + b + 1]]``.

    Parameters
    ----------
    ids : Tensor
        ``[N]`` int32 or int64; a negative id is a missing id, where the exchange's ``bounds`` let it pass.
    offsets : Tensor
        ``[F * B + 1]`` int64, ascending from 0 to ``N``.
    weights : Tensor or None
        ``[N]`` per-sample weights.
    """

    ids: Tensor
    offsets: Tensor
    weights: Tensor | None = None

    def lengths(self) -> Tensor:
        """``[F * B]`` int64 ids per bag."""
        return self.offsets.diff()


@dataclass(frozen=True)
class Batch:
    """Rows ``g * B .. (g + 1) * B`` of a global batch, padded with samples of weight 0.

    Parameters
    ----------
    dense : Tensor
        ``[B, K]`` float32.
    sparse : Jagged
        Bags of all features.
    label : Tensor
        ``[B]`` float32, 0 or 1.
    weight : Tensor
        ``[B]`` float32, 1 for a real sample and 0 for padding.
    global_samples : int
        Real samples of the whole global batch: what a loss is divided by.
    """

    dense: Tensor
    sparse: Jagged
    label: Tensor
    weight: Tensor
    global_samples: int
