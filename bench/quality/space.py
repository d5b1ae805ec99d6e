"""What is tuned: the space that random trials are drawn from, the same for flat and multi-tower models.

| option | drawn |
|---|---|
| dense_lr | log-uniform in [3e-4, 1e-2] |
| table_lr | log-uniform in [3e-3, 3e-1] |
| table_optimizer | rowwise_adagrad or adagrad |
| table_weight_decay | 0 half of the time, else log-uniform in [1e-6, 1e-2] |
| batch_size | 512, 1024 or 2048 |

The first trial is the package's defaults.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SEED = 20240513


def draw_trials(count: int) -> list[dict[str, Any]]:
    """Options of the trials: more of them begin with the same."""
    rng = np.random.default_rng(SEED)
    return [{}, *(_draw(rng) for _ in range(count - 1))][:count]


def _draw(rng: np.random.Generator) -> dict[str, Any]:
    # Everything is drawn every time, so that a trial does not depend on what the ones before have drawn.
    decay = _log_uniform(rng, 1e-6, 1e-2)
    return {
        "dense_lr": _log_uniform(rng, 3e-4, 1e-2),
        "table_lr": _log_uniform(rng, 3e-3, 3e-1),
        "table_optimizer": str(rng.choice(["rowwise_adagrad", "adagrad"])),
        "table_weight_decay": decay if rng.random() < 0.5 else 0.0,
        "batch_size": int(rng.choice([512, 1024, 2048])),
    }


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Three digits are enough, and read well in a table."""
    return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.3g}")
