"""How tables are updated in the backward pass."""

from dataclasses import dataclass
from typing import Literal, get_args

from dmt_kernels.spec.errors import InputError

TableOptimizerKind = Literal["sgd", "adagrad", "rowwise_adagrad"]


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

    Raises
    ------
    InputError
        For an unknown kind, a negative rate, eps or decay.
    """

    kind: TableOptimizerKind = "rowwise_adagrad"
    lr: float = 0.02
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        kinds = get_args(TableOptimizerKind)
        if self.kind not in kinds:
            raise InputError(f"table optimizer {self.kind!r} is unknown; choose one of {', '.join(kinds)}")
        if min(self.lr, self.eps, self.weight_decay) < 0:
            raise InputError(f"table optimizer has a negative lr, eps or weight decay: {self}")
