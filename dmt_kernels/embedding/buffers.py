"""Memory of a batch on its way, kept for the next batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Buffers:
    """Named pieces of memory that grow to what was asked for and stay.

    A step needs the same megabytes as the step before. Given back to the system in between, their pages are cleared
    anew every time, which costs more than writing to them.

    Parameters
    ----------
    dtype, device : dtype, device
        Of all pieces but those of bytes.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._pieces: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return memory of this shape; what an earlier call of this name returned is the same memory."""
        return self._take(name, shape, self.dtype)

    def take_bytes(self, name: str, *shape: int) -> Tensor:
        """Return memory of this shape, of uint8."""
        return self._take(name, shape, torch.uint8)

    def _take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape)
        piece = self._pieces.get(name)
        if piece is None or piece.numel() < size:
            with torch.inference_mode(False):  # or training could not write to what an evaluation has taken first
                piece = self._pieces[name] = torch.empty(size, dtype=dtype, device=self.device)
        return piece[:size].view(shape)


class BufferPool:
    """Buffers that no batch uses at present."""

    def __init__(self) -> None:
        self._free: list[Buffers] = []

    def take(self, dtype: torch.dtype, device: torch.device) -> Buffers:
        """Return free buffers, or new ones."""
        while self._free:
            buffers = self._free.pop()
            if (buffers.dtype, buffers.device) == (dtype, device):
                return buffers
        return Buffers(dtype, device)

    def give_back(self, buffers: Buffers) -> None:
        """A batch has ended; one set is kept, which is what training needs."""
        self._free = [buffers]
