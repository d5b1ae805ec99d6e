"""What stages run on: the composition of torch.distributed and, where it is there, the compiled engine."""

import pytest

from dmt_kernels.ops import stage
from dmt_kernels.ops._engine import compiled_engine
from dmt_kernels.ops.reference import stage as composition

_COMPILED, _WHY = compiled_engine()
_compiled = pytest.param("compiled", marks=pytest.mark.skipif(_COMPILED is None, reason=_WHY))
engines = pytest.mark.parametrize("engine", ["composition", _compiled])


def use(engine: str) -> None:
    """In this process."""
    stage._engine = {"composition": composition, "compiled": _COMPILED}[engine]
