"""Finished runs, one JSON line each: what a bench that was killed goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def key_of(spec: Record) -> str:
    """What a run is, as text: two runs with the same are the same run, whatever else they were scored with."""
    return json.dumps({name: value for name, value in spec.items() if name != "payloads"}, sort_keys=True)


class Records:
    """The file, and what it holds, by key.

    Parameters
    ----------
    path : Path
        Read if it exists. A line that was cut off when a bench was killed is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_key: dict[str, Record] = {}
        text = path.read_text() if path.exists() else ""
        whole, newline, _ = text.rpartition("\n")
        if text != whole + newline:
            path.write_text(whole + newline)
        for line in whole.splitlines():
            record = json.loads(line)
            self._by_key[key_of(record["spec"])] = record

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_key)

    def find(self, spec: Record) -> Record | None:
        return self._by_key.get(key_of(spec))

    def add(self, record: Record) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._by_key[key_of(record["spec"])] = record
