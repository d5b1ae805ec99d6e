"""How tables are updated in the backward pass."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from dmt_kernels.spec.errors import InputError

TableOptimizerKind = Literal["sgd", "adagrad", "rowwise_adagrad"]
TableRounding = Literal["stochastic", "nearest"]


@dataclass(frozen=True)
class TableOptimizer:
    """The fused optimizer of the embedding tables.

    Parameters
    ----------
    kind : {"sgd", "adagrad", "rowwise_adagrad"}
        Arithmetic as FBGEMM's ``EXACT_SGD``, ``EXACT_ADAGRAD`` and ``EXACT_ROWWISE_ADAGRAD``.
    lr : float
        Learning rate.
    eps : float
        Added to the square root of the state.
    weight_decay : float
        L2 decay of the rows that a step touches.
    rounding : {"stochastic", "nearest"}
        How weights of float16 and bfloat16 tables are stored. Steps below half of a weight's last place are lost to
        nearest, all of them; at random they count on average. So that is the default, as it is FBGEMM's. Wider
        weights are stored as they are.

    Raises
    ------
    InputError
        For an unknown kind or rounding; a rate, eps or decay that is negative or not finite.
    """

    kind: TableOptimizerKind = "rowwise_adagrad"
    lr: float = 0.02
    eps: float = 1e-8
    weight_decay: float = 0.0
    rounding: TableRounding = "stochastic"

    def __post_init__(self) -> None:
        kinds = get_args(TableOptimizerKind)
        if self.kind not in kinds:
            raise InputError(f"table optimizer {self.kind!r} is unknown; choose one of {', '.join(kinds)}")
        if self.rounding not in get_args(TableRounding):
            raise InputError(f"rounding {self.rounding!r} is unknown; choose one of stochastic, nearest")
        for name in ("lr", "eps", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} {value} of the table optimizer is not a number of at least 0")
