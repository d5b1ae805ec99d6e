"""How rows travel between ranks: payload formats, their bytes, and how far off their numbers may be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from dmt_kernels.spec.errors import InputError


@dataclass(frozen=True)
class ErrorBound:
    """``|decoded - x| <= of_value * |x| + of_maximum * max |row| + least``.

    For float32 rows with magnitudes up to 3.18e38, decoded to float32 or float64.
    """

    of_value: float = 0.0
    of_maximum: float = 0.0
    least: float = 0.0


class WireFormat(Enum):
    """The payload of a message: one element per column and, in the *scaled* formats, one float32 scale per row.

    ========  ======  =====================================================  ==========================================
    format    bytes   scale of a row                                         error, rounded to nearest
    ========  ======  =====================================================  ==========================================
    ``fp32``  4       none                                                   none
    ``bf16``  2       none                                                   ``2**-8 |x|``
    ``fp16``  2       power of two: the maximum comes into ``[2**14, 2**15)``  ``2**-11 |x| + 2**-39 max |row|``
    ``fp8``   1       power of two: the maximum comes into ``(224, 448]``    ``2**-4 |x| + 2**-10 / 224 max |row|``
    ``int8``  1       maximum / 127                                          ``max |row| / 254``
    ========  ======  =====================================================  ==========================================

    ``fp8`` is e4m3fn. :meth:`error_bound` has the bounds to the last digit; rounded stochastically they are twice as
    large.

    * inf and NaN stay what they are in ``fp32`` and ``bf16``; in the scaled formats their whole row decodes to NaN.
    * Nothing up to 3.18e38 overflows. Beyond, a number that rounds to ``2**128`` decodes to inf.
    * Rows of zeros stay zeros. A zero keeps its sign except in ``int8``.
    * Denormals are numbers like others: no row vanishes because its maximum is small.
    """

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"

    @classmethod
    def _missing_(cls, value: object) -> Any:
        raise InputError(f"wire format {value!r} is unknown; choose one of {', '.join(f.value for f in cls)}")

    @cached_property
    def code(self) -> int:
        """The ops' integer for it."""
        return list(WireFormat).index(self)

    @classmethod
    def from_code(cls, code: int) -> WireFormat:
        """The format of which that is the ops' integer."""
        return list(cls)[code]

    @property
    def element_bytes(self) -> int:
        """Payload bytes of one column."""
        return {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}[self.value]

    @property
    def is_scaled(self) -> bool:
        """Whether each row has a scale."""
        return self not in (WireFormat.FP32, WireFormat.BF16)

    def payload_bytes(self, dim: int) -> int:
        """Bytes before the scale of a row of `dim` columns: a multiple of 4, so that the scale is aligned."""
        return (dim * self.element_bytes + 3) // 4 * 4

    def row_bytes(self, dim: int) -> int:
        """Bytes of a row of `dim` columns."""
        return self.payload_bytes(dim) + (4 if self.is_scaled else 0)

    def error_bound(self, *, stochastic: bool = False) -> ErrorBound:
        """How far a decoded number may be from the one that was encoded; with `stochastic` rounding twice as far."""
        nearest = {
            # Half a unit in the last place of 8 bits; of a denormal.
            WireFormat.BF16: ErrorBound(2**-8, 0, 2**-134),
            # Half a unit in the last place of 11 or 4 bits; below the normal numbers half a least step times the scale.
            WireFormat.FP16: ErrorBound(2**-11, 2**-25 / 2**14),
            WireFormat.FP8: ErrorBound(2**-4, 2**-10 / 224),
            # Half a step, and 2**-14 of it for the rounding of scale and products; a denormal scale is rounded up.
            WireFormat.INT8: ErrorBound(0, (1 + 2**-14) / 254, 2**-150),
        }.get(self, ErrorBound())
        if not stochastic:
            return nearest
        return ErrorBound(2 * nearest.of_value, 2 * nearest.of_maximum, 2 * nearest.least)
