"""What a run shows while it trains: a bar on a terminal, a line per logging interval elsewhere."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class TrainProgress:
    """Context manager around a training run.

    Parameters
    ----------
    title : str
        Name of the run.
    steps : int
        Training steps, all epochs together.
    show : bool
        False on all ranks but one.
    """

    def __init__(self, title: str, steps: int, *, show: bool) -> None:
        self._title = title
        self._show = show
        self._bar: Progress | None = None
        if show and sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
            console = Console(file=sys.stdout)
            self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[state]}"), console=console)
            self._task = self._bar.add_task(title, total=steps, state="")
        self._steps = steps

    def __enter__(self) -> "TrainProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, state: str | None = None) -> None:
        """Show that ``step`` steps are done; ``state`` says how it goes, once per logging interval."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
            if state is not None:
                self._bar.update(self._task, state=state)
        elif self._show and state is not None:
            print(f"{self._title}  step {step}/{self._steps}  {state}", flush=True)
