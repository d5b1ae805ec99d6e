"""What stages run on: the composition of torch.distributed and, where it is there, the compiled engine."""

import os

import pytest
import torch.distributed as dist

from dmt_kernels.ops import stage
from dmt_kernels.ops._engine import compiled_engine
from dmt_kernels.ops.reference import stage as composition

_COMPILED, _WHY = compiled_engine()
_if_compiled = pytest.mark.skipif(_COMPILED is None, reason=_WHY)
_compiled = [pytest.param(name, marks=_if_compiled) for name in ("compiled", "shared memory")]
engines = pytest.mark.parametrize("engine", ["composition", *_compiled])


def use(engine: str) -> None:
    """In this process: the compiled engine through gloo or, also in the default group, through shared memory."""
    stage._engine = composition if engine == "composition" else _COMPILED
    os.environ["DMT_SHARED_MEMORY"] = "1" if engine == "shared memory" else "0"
    neighbours = stage.stage_share_memory(dist.group.WORLD.group_name)
    others = [rank for rank in range(dist.get_world_size()) if rank != dist.get_rank()]
    assert neighbours == (others if engine == "shared memory" else [])
