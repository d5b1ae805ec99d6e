"""From a word on the command line to a data set."""

import os
from pathlib import Path

from dmt_kernels.spec.errors import InputError
from dmt_kernels.train.data.column_files import open_columns
from dmt_kernels.train.data.criteo import open_criteo
from dmt_kernels.train.data.dataset import Dataset
from dmt_kernels.train.data.npz import load_npz
from dmt_kernels.train.data.synthetic import DEFAULT_ROWS, SyntheticDataset

DEFAULT_HASH_ROWS = 100_000
_FORMS = "criteo:PATH, npz:PATH, columns:DIR or synthetic[:ROWS]"


def parse_source(source: str) -> tuple[str, str]:
    """Split a source into its kind and the rest."""
    kind, _, rest = source.partition(":")
    if kind not in ("criteo", "npz", "columns", "synthetic") or (not rest and source != "synthetic"):
        raise InputError(f"data: {source!r} is not {_FORMS}")
    return kind, rest


def open_dataset(
    source: str,
    *,
    seed: int,
    cache_dir: Path | None = None,
    hash_rows: int = DEFAULT_HASH_ROWS,
    rank: int = 0,
) -> Dataset:
    """Open a source of rows; in a distributed run every rank calls it, and none waits for a collective.

    Parameters
    ----------
    source : str
        ``criteo:PATH`` (a file or glob of click logs, .gz or plain), ``npz:PATH``, ``columns:DIR`` (what `convert`
        wrote) or ``synthetic[:ROWS]`` (training rows; an eighth as many again to validate and to test).
    seed : int
        Of a synthetic log, and of the split of an .npz file that has none.
    cache_dir : Path or None
        Where the columns made from a Criteo log are kept; None: ``$XDG_CACHE_HOME/dmt_kernels``.
    hash_rows : int
        Rows of every table of a Criteo log.
    rank : int
        Ranks that open a Criteo log together each convert other files, and rank 0 reports.

    Raises
    ------
    InputError
        When the source is unknown, missing or bad.
    """
    kind, rest = parse_source(source)
    if kind == "criteo":
        if cache_dir is None:
            cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmt_kernels"
        return open_criteo(rest, hash_rows=hash_rows, cache_dir=cache_dir, rank=rank)
    if kind == "npz":
        return load_npz(Path(rest).expanduser(), seed=seed)
    if kind == "columns":
        return open_columns(Path(rest).expanduser())
    if rest and not (rest.isascii() and rest.isdecimal() and int(rest) > 0):
        raise InputError(f"synthetic: {rest!r} is not a positive number of rows")
    return SyntheticDataset(int(rest) if rest else DEFAULT_ROWS, seed)
