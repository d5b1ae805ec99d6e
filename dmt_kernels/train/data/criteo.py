"""Criteo click logs: text files, plain or .gz, streamed once into columns.

* Every categorical value becomes ``1 + mix64(value) % (hash_rows - 1)`` in a table of ``hash_rows`` rows; id 0 stands
  for a missing value. The mix is splitmix64's finaliser, so equal values meet in every run and on every machine.
* An integer becomes ``log1p(max(x, 0))``; a missing one counts as 0.
* The log is in order of time, so the first 80 % of the rows train, the next 10 % validate and the last 10 % test.
* A malformed line is skipped, counted and reported; more than 1 % of them stops the run.

Training needs the number of rows and random access, which text does not give: each file is therefore converted once
into a part of a columns directory and mapped from there. Files are the unit of work: ranks, or `convert`'s workers,
each take the next file that nobody has, under a file lock that dies with its holder, so that it needs neither a leader
nor a collective and works whether the hosts share the directory or not.
"""

import contextlib
import fcntl
import functools
import glob
import gzip
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from dmt_kernels.spec.errors import InputError
from dmt_kernels.train.data.column_files import FORMAT, PartWriter, open_columns, part_name, write_json, write_meta
from dmt_kernels.train.data.columns import ColumnDataset
from dmt_kernels.train.data.criteo_text import CATEGORICALS, LABEL_AND_INTEGERS, Parsed, explain, parse
from dmt_kernels.train.data.dataset import FeatureInfo, Rows
from dmt_kernels.train.data.hashing import mix64
from dmt_kernels.train.data.npz import training_and_validation_rows

log = logging.getLogger("dmt_kernels.data")

CHUNK_BYTES = 2 << 20  # about 10,000 rows, whose arrays stay in the L3 cache
MALFORMED_LIMIT = 0.01
# A file of another kind is refused here already, and not after hours; a short burst of bad lines is not enough.
EARLY_LINES = 1_000_000
CACHE_VERSION = 1  # of what parsing and hashing make of a line: another one leaves old caches alone
SHOWN_LINES = 5  # malformed lines reported in full
DENSE_WIDTH = LABEL_AND_INTEGERS - 1


def find_files(pattern: str) -> list[Path]:
    """Files that a path or glob names, in order of name."""
    pattern = os.path.expanduser(pattern)
    paths = [Path(pattern)] if os.path.exists(pattern) else sorted(map(Path, glob.glob(pattern)))
    files = [path for path in paths if path.is_file()]
    if not files:
        raise InputError(f"criteo: no file matches {pattern}")
    return files


def open_criteo(pattern: str, *, hash_rows: int, cache_dir: Path, rank: int = 0) -> ColumnDataset:
    """Open click logs by way of columns in ``cache_dir``; every rank may call it at the same time.

    Parameters
    ----------
    pattern : str
        Path or glob.
    hash_rows : int
        Rows of every table.
    cache_dir : Path
        Where columns are kept. A later call with the same files, unchanged, only maps them.
    rank : int
        Which rank this is: ranks start at different files, and rank 0 reports malformed lines.

    Raises
    ------
    InputError
        When no file matches, one cannot be read, or more than 1 % of the lines are malformed.
    """
    files = find_files(pattern)
    stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = blake2b(repr((CACHE_VERSION, FORMAT, hash_rows, stamps)).encode(), digest_size=12).hexdigest()
    directory = cache_dir / f"criteo-{key}"
    try:
        convert_files(files, directory, hash_rows=hash_rows, first=rank)
        finish(files, directory, hash_rows=hash_rows, report=rank == 0)
    except OSError as error:
        raise InputError(f"criteo: cannot keep columns in {directory} ({error})") from error
    return open_columns(directory)


def convert_in_processes(pattern: str, directory: Path, *, hash_rows: int, workers: int) -> None:
    """Turn click logs into a columns directory with ``workers`` processes."""
    files = find_files(pattern)
    workers = min(workers, len(files))
    work = functools.partial(convert_files, files, directory, hash_rows=hash_rows)
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            list(pool.map(functools.partial(_convert_from, work), range(workers)))
    else:
        work(first=0)
    finish(files, directory, hash_rows=hash_rows, report=True)


def _convert_from(work: Any, first: int) -> None:
    work(first=first)


def convert_files(files: Sequence[Path], directory: Path, *, hash_rows: int, first: int) -> None:
    """Convert files into parts until all parts are there, beginning with file ``first``."""
    if hash_rows < 2:
        raise InputError(f"criteo: tables of {hash_rows} rows cannot hold an id beside the one for missing values")
    directory.mkdir(parents=True, exist_ok=True)
    mine = [(first + i) % len(files) for i in range(len(files))]
    # First whatever nobody works on; then wait for the others, and redo what one of them left undone.
    for wait in (False, True):
        for index in mine:
            part = directory / part_name(index)
            with _lock(part, wait) as locked:
                if locked and not part.exists():
                    _convert_file(files[index], part, hash_rows)


@contextlib.contextmanager
def _lock(part: Path, wait: bool) -> Iterator[bool]:
    with part.with_name(f".{part.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _convert_file(file: Path, part: Path, hash_rows: int) -> None:
    temporary = part.with_name(f".{part.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed; the lock is ours now
    lines = 0
    malformed = 0
    shown: list[str] = []
    try:
        with PartWriter(temporary, features(hash_rows), DENSE_WIDTH) as writer:
            for text in read_lines(file):
                parsed = parse(text)
                writer.append(to_rows(parsed, hash_rows))
                if len(parsed.malformed) and len(shown) < SHOWN_LINES:
                    split = text.split(b"\n")
                    for line in parsed.malformed[: SHOWN_LINES - len(shown)]:
                        shown.append(f"{file}, line {lines + line + 1}: {explain(split[line])}")
                malformed += len(parsed.malformed)
                lines += parsed.lines
                if lines >= EARLY_LINES:
                    _refuse_malformed(malformed, lines, f"the first {lines} lines of {file}", shown)
        # What this file adds to the report; inside the part, so that both are there or neither.
        write_json(temporary / "lines.json", {"lines": lines, "malformed": malformed, "shown": shown})
        temporary.rename(part)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finish(files: Sequence[Path], directory: Path, *, hash_rows: int, report: bool) -> None:
    """Judge the malformed lines of all files together and write meta.json. All ranks write the same."""
    counts = [json.loads((directory / part_name(i) / "lines.json").read_text()) for i in range(len(files))]
    lines, malformed = sum(count["lines"] for count in counts), sum(count["malformed"] for count in counts)
    shown = [line for count in counts for line in count["shown"]]
    where = str(files[0]) if len(files) == 1 else f"{len(files)} files"
    _refuse_malformed(malformed, lines, f"the {lines} lines of {where}", shown)
    if lines == malformed:
        raise InputError(f"criteo: {where} hold no rows")
    if malformed and report:
        detail = "\n  ".join(shown[:SHOWN_LINES])
        log.warning("criteo: skipped %d malformed of the %d lines of %s:\n  %s", malformed, lines, where, detail)
    rows = [count["lines"] - count["malformed"] for count in counts]
    train, valid = training_and_validation_rows(sum(rows))
    splits = {"train": (0, train), "valid": (train, train + valid), "test": (train + valid, sum(rows))}
    write_meta(
        directory,
        name=files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more",
        features=features(hash_rows),
        dense_width=DENSE_WIDTH,
        splits=splits,
        part_rows=rows,
    )


def _refuse_malformed(malformed: int, lines: int, where: str, shown: Sequence[str]) -> None:
    if malformed > MALFORMED_LIMIT * lines:
        raise InputError(
            f"criteo: {malformed} of {where} are malformed, more than {MALFORMED_LIMIT:.0%}; the first is {shown[0]}"
        )


def features(hash_rows: int) -> list[FeatureInfo]:
    """The 26 categorical features C1 to C26."""
    return [FeatureInfo(f"C{f}", hash_rows) for f in range(1, CATEGORICALS + 1)]


def to_rows(parsed: Parsed, hash_rows: int) -> Rows:
    """Hash and scale parsed rows."""
    ids = (mix64(parsed.categoricals.copy()) % np.uint64(hash_rows - 1)).astype(np.int64) + 1
    ids[parsed.missing] = 0
    return Rows(
        dense=np.log1p(np.maximum(parsed.integers, 0).T.astype(np.float32)),
        ids=ids.ravel(),
        lengths=np.ones(ids.shape, np.int64),
        label=parsed.label,
    )


def read_lines(file: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Read a plain or .gz file as blocks of whole lines, each line with its newline."""
    rest = b""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            while chunk := stream.read(chunk_bytes):
                cut = chunk.rfind(b"\n") + 1
                if cut:
                    yield rest + chunk[:cut]
                    rest = chunk[cut:]
                elif len(rest) > chunk_bytes:
                    raise InputError(f"criteo: {file} is not a click log: it has a line of over {len(rest)} characters")
                else:
                    rest += chunk
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"criteo: cannot read {file} ({error})") from error
    if rest:
        yield rest + b"\n"
