"""The folder of a run: which files it has, and when it may be written to."""

import fcntl
import json
import math
import os
import shutil
from pathlib import Path
from typing import IO, Any

from dmt_kernels.spec import InputError


class RunFolder:
    """``config.json``, ``layout.json``, ``metrics.jsonl``, ``model/`` and ``summary.json`` of one run.

    While it runs there may be ``states/``, too, from the latest of which it can go on.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.layout = self.path / "layout.json"
        self.metrics = self.path / "metrics.jsonl"
        self.model = self.path / "model"
        self.states = self.path / "states"
        self.summary = self.path / "summary.json"
        self.lock = self.path / ".lock"

    def check_writable(self, overwrite: bool) -> None:
        """Check that a run may be written here, without writing anything.

        Raises
        ------
        InputError
            If the path is a file or cannot be written to, or holds a run and ``overwrite`` is not set.
        """
        base = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path} is a file, not a folder")
        if not base.is_dir() or not os.access(base, os.W_OK):
            raise InputError(f"--out {self.path}: {base} is not a folder that can be written to")
        if not overwrite and (found := [p.name for p in self._files() if p.exists()]):
            raise InputError(f"--out {self.path} already holds a run ({found[0]}); give another folder or --overwrite")

    def take(self) -> IO[bytes]:
        """Make the folder and keep other runs from taking it, until what this returns is closed or its process ends.

        Where the file system has no locks nobody is kept from anything.

        Raises
        ------
        InputError
            If another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.lock.open("ab")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise InputError(f"--out {self.path}: another run is writing there") from error
        except OSError:
            pass
        return file

    def clear(self) -> None:
        """Make the folder, without an earlier run's files; files of another kind stay."""
        self.path.mkdir(parents=True, exist_ok=True)
        for file in self._files():
            if file.is_dir():
                shutil.rmtree(file)
            else:
                file.unlink(missing_ok=True)

    def cut_metrics(self, step: int) -> None:
        """Remove what ``metrics.jsonl`` has of training after a step, and of scores from it on."""
        kept = []
        for text in self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []:
            line = json.loads(text) if text.endswith("\n") else {"step": math.inf}  # it was being written
            if line["step"] < step or ("loss" in line and line["step"] == step):
                kept.append(text)
        replace_text(self.metrics, "".join(kept))

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        with self.metrics.open("a") as file:
            file.write(_json(line) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``."""
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def read_summary(self) -> dict[str, Any] | None:
        """Return what ``summary.json`` holds; None as long as the run has not ended."""
        return json.loads(self.summary.read_text()) if self.summary.exists() else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``, after which nobody needs to go on."""
        replace_text(self.summary, _json(summary, indent=1) + "\n")
        shutil.rmtree(self.states, ignore_errors=True)

    def _files(self) -> list[Path]:
        return [self.config, self.layout, self.metrics, self.model, self.states, self.summary]


def replace_text(path: Path, text: str) -> None:
    """Write a file whole: whoever is interrupted leaves what it was before."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def _json(value: dict[str, Any], indent: int | None = None) -> str:
    """JSON has no NaN: a number that is none becomes null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in value.items()}
    return json.dumps(finite, indent=indent)
