"""Initial values that depend on a seed and a parameter's name only.

Ranks that build the same module get the same parameters without a broadcast, whatever else they
have built before and in whatever order.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dmt_kernels.spec import derive_seed


@torch.no_grad()
def uniform_(parameter: Tensor, bound: float, seed: int, name: str) -> None:
    """Fill ``parameter`` in place from the uniform distribution on ``[-bound, bound)``.

    The stream is ``derive_seed(seed, name)``. Numbers are drawn on the CPU in float64 and rounded
    once, so a model agrees over devices, and over dtypes to rounding. Uniform and not normal:
    the CPU's normal generator takes another path per instruction set.
    """
    if parameter.is_meta:
        return
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, name))
    values = torch.rand(parameter.shape, generator=generator, dtype=torch.float64, device="cpu")
    parameter.copy_(values.mul_(2 * bound).sub_(bound))


def init_parameters_(module: nn.Module, seed: int, name: str) -> None:
    """Fill every parameter of ``module`` in place: matrices Xavier-uniform, the others 0.

    A matrix ``[out, in]`` gets the bound ``sqrt(6 / (in + out))`` (Glorot and Bengio, 2010).

    Parameters
    ----------
    module : nn.Module
        Its parameters have at most two dimensions.
    seed : int
        The run's seed.
    name : str
        Name of ``module`` in its model; parameter ``p`` draws from ``derive_seed(seed, f"{name}.{p}")``.
    """
    for path, parameter in module.named_parameters():
        bound = math.sqrt(6 / max(1, sum(parameter.shape))) if parameter.dim() == 2 else 0.0
        uniform_(parameter, bound, seed, f"{name}.{path}")


@contextmanager
def seeded_rng(seed: int, name: str) -> Iterator[None]:
    """Seed torch's CPU generator with ``derive_seed(seed, name)`` inside the ``with``, and restore it after.

    For modules of the user's that initialise themselves: all ranks of a tower must build the same.

        with seeded_rng(seed, "tower0"):
            module = CustomTower(MyModule(), dims)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, name))
        yield
