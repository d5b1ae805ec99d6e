"""How far a bench is: a bar on a terminal, a line per run elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench.quality.records import Record


class BenchProgress:
    """Context manager around a bench."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("{task.completed}/{task.total} runs"), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.description}"), console=Console(file=sys.stdout))
            self._task = self._bar.add_task("starting", total=None)
        self._done = 0

    def __enter__(self) -> BenchProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, name: str, record: Record, left: int) -> None:
        """Show that a run has ended; `left` are known to be needed, and more may come of them."""
        self._done += 1
        if "failed" in record:
            outcome = f"failed: {record['failed']}"
        else:
            outcome = f"valid {record['valid_auc']:.4f} test {record['auc']:.4f}, best epoch {record['best_epoch']}"
        if self._bar is not None:
            total = self._done + left
            self._bar.update(self._task, completed=self._done, total=total, description=f"{name}: {outcome}")
        else:
            print(f"{self._done}/{self._done + left}  {name}: {outcome}", flush=True)
