"""Affinities of a data set's features: from a short flat run, or from the ids."""

from pathlib import Path

import numpy as np

from dmt_kernels.planner import alignment, load_affinity, mean_cosine, mutual_information
from dmt_kernels.spec import InputError
from dmt_kernels.train.assemble import Setup
from dmt_kernels.train.data import sample_ids
from dmt_kernels.train.flat_run import FlatRun

_MEASURES = {"alignment": alignment, "cosine": mean_cosine}
LEARNED = tuple(_MEASURES)
DEFAULT_AFFINITY = "alignment"
AFFINITIES = (*LEARNED, "ids")


def check_affinity_kind(kind: str) -> None:
    """Refuse what :func:`find_affinity` cannot find, with an `InputError`."""
    if kind not in AFFINITIES and Path(kind).suffix not in (".npy", ".csv"):
        raise InputError(f"--affinity {kind!r} is none of {', '.join(AFFINITIES)} and no .npy or .csv file")


def find_affinity(setup: Setup, kind: str, run: FlatRun | None) -> np.ndarray:
    """Compute, or read, the affinity of all features in the order of the tables, ``[F, F]``.

    Parameters
    ----------
    setup : Setup
        Of :func:`~dmt_kernels.train.flat_run.flat_setup`.
    kind : str
        One of `AFFINITIES`, or a .npy or .csv file.
    run : FlatRun or None
        Of that setup; those `LEARNED` need it.

    Raises
    ------
    InputError
        If it is neither, or the file does not fit.
    """
    check_affinity_kind(kind)
    features = setup.plan.partition.features
    if kind == "ids":
        values, _ = sample_ids(setup.dataset, features)
        return mutual_information(values, setup.config.seed)
    if kind in LEARNED:
        assert run is not None
        return _MEASURES[kind](run.pooled.cpu(), run.dims)
    return load_affinity(Path(kind), len(features))
