"""How long steps take."""

import time
from statistics import median

import torch

WARM_UP_STEPS = 5


class StepTimer:
    """Times from the end of one step to the end of the next, loading included.

    Parameters
    ----------
    device : torch.device
        On CUDA, ends of steps are events in the stream, so that timing makes nobody wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last: float | torch.cuda.Event | None = None
        self._spans: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event, int]] = []

    def restart(self) -> None:
        """Begin a stretch of steps; what happened since the last one is not counted."""
        self._last = self._now()

    def step(self, samples: int) -> None:
        """A step on this many real samples has ended."""
        now = self._now()
        if self._last is not None:
            self._spans.append((self._last, now, samples))
        self._last = now

    def step_ms(self) -> list[float]:
        """Milliseconds of every step so far."""
        if not self._cuda:
            return [(stop - start) * 1e3 for start, stop, _ in self._spans]  # type: ignore[operator]
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) for start, stop, _ in self._spans]  # type: ignore[union-attr, arg-type]

    def figures(self) -> tuple[float, float]:
        """Median step time in ms and samples per second, without the warm-up (at most half of the steps)."""
        skip = min(WARM_UP_STEPS, len(self._spans) // 2)
        times = self.step_ms()[skip:]
        samples = sum(n for _, _, n in self._spans[skip:])
        return (median(times), samples / (sum(times) / 1e3)) if times else (0.0, 0.0)

    def _now(self) -> "float | torch.cuda.Event":
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
