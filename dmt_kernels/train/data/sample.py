"""A look at a data set: some rows of its training split."""

import numpy as np

from dmt_kernels.train.data.dataset import Dataset

SAMPLE_ROWS = 8192


def sample_ids(dataset: Dataset, features: tuple[str, ...]) -> tuple[np.ndarray, dict[str, float]]:
    """Read rows spread evenly over the training split.

    Returns
    -------
    values : ndarray
        ``[F, n]`` the first id of every bag, -1 for an empty one.
    lookups : dict of str to float
        Mean ids of a bag, by feature.
    """
    count = dataset.rows("train")
    index = np.unique(np.linspace(0, count - 1, min(count, SAMPLE_ROWS)).astype(np.int64))
    position = {feature.name: f for f, feature in enumerate(dataset.features)}
    rows = dataset.read("train", index, [position[name] for name in features])
    starts = np.concatenate([[0], np.cumsum(rows.lengths.ravel())])[:-1].reshape(rows.lengths.shape)
    ids = np.append(rows.ids, -1)
    values = np.where(rows.lengths > 0, ids[np.minimum(starts, len(rows.ids))], -1)
    return values, dict(zip(features, rows.lengths.mean(axis=1).tolist(), strict=True))


def mean_lookups(dataset: Dataset) -> dict[str, float]:
    """Mean ids of a bag, by feature; nothing is read where all have one id."""
    names = tuple(feature.name for feature in dataset.features)
    if not any(feature.multi for feature in dataset.features) or not dataset.rows("train"):
        return dict.fromkeys(names, 1.0)
    return sample_ids(dataset, names)[1]
