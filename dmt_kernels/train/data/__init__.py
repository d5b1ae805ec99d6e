"""Rows: from Criteo logs, .npz files, columns on disk or a generator to one rank's batches."""

from dmt_kernels.train.data.conversion import convert
from dmt_kernels.train.data.dataset import SPLITS, Dataset, FeatureInfo, Rows
from dmt_kernels.train.data.loader import Loader
from dmt_kernels.train.data.sample import SAMPLE_ROWS, mean_lookups, sample_ids
from dmt_kernels.train.data.source import DEFAULT_HASH_ROWS, open_dataset
from dmt_kernels.train.data.synthetic import SyntheticDataset

__all__ = [
    "DEFAULT_HASH_ROWS",
    "SAMPLE_ROWS",
    "SPLITS",
    "Dataset",
    "FeatureInfo",
    "Loader",
    "Rows",
    "SyntheticDataset",
    "convert",
    "mean_lookups",
    "open_dataset",
    "sample_ids",
]
