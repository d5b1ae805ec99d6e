"""Turn any source into a columns directory."""

import os
import shutil
from pathlib import Path

import numpy as np

from dmt_kernels.spec.errors import InputError
from dmt_kernels.train.data.column_files import PartWriter, part_name, write_meta
from dmt_kernels.train.data.criteo import convert_in_processes
from dmt_kernels.train.data.dataset import SPLITS, Dataset
from dmt_kernels.train.data.source import DEFAULT_HASH_ROWS, open_dataset, parse_source

CHUNK_ROWS = 65536


def convert(source: str, out: Path, *, hash_rows: int = DEFAULT_HASH_ROWS, workers: int = 1, seed: int = 0) -> None:
    """Write the rows of a source as columns that ``columns:OUT`` opens by mapping them.

    Parameters
    ----------
    source : str
        As for `open_dataset`.
    out : Path
        Directory to create. It appears when everything is written, so it is never half there.
    hash_rows : int
        Rows of every table of a Criteo log.
    workers : int
        Processes; each converts whole files of a Criteo log.
    seed : int
        Of a synthetic log, and of the split of an .npz file that has none.

    Raises
    ------
    InputError
        When the source is bad or ``out`` already holds something.
    """
    kind, rest = parse_source(source)
    out = Path(out)
    if workers < 1:
        raise InputError(f"convert: {workers} workers cannot do anything")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"convert: {out} already exists")
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        if kind == "criteo":
            convert_in_processes(rest, temporary, hash_rows=hash_rows, workers=workers)
            for lock in temporary.glob(".*.lock"):
                lock.unlink()
        else:
            write_columns(open_dataset(source, seed=seed), temporary)
        temporary.rename(out)
    except OSError as error:
        raise InputError(f"convert: cannot write {out} ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_columns(dataset: Dataset, directory: Path) -> None:
    """Write all splits of a data set, one after the other, as a columns directory of one part."""
    splits = {}
    with PartWriter(directory / part_name(0), dataset.features, dataset.dense_width) as writer:
        for split in SPLITS:
            start, rows = writer.rows, dataset.rows(split)
            for first in range(0, rows, CHUNK_ROWS):
                writer.append(dataset.read(split, np.arange(first, min(first + CHUNK_ROWS, rows))))
            splits[split] = (start, writer.rows)
    write_meta(
        directory,
        name=dataset.name,
        features=dataset.features,
        dense_width=dataset.dense_width,
        splits=splits,
        part_rows=[writer.rows],
        best_auc=dataset.best_auc,
        planted_groups=dataset.planted_groups,
    )
