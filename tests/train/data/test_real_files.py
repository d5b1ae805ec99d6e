from pathlib import Path

import numpy as np
import pytest

from dmt_kernels.train.data import SPLITS, Loader, convert, open_dataset

SHARED = Path(__file__).parents[4] / "shared" / "data"
FILES = {
    "criteo": ("criteo:{}/criteo_day0_10k.tsv.gz", (8000, 1000, 1000), 26, 13, 0.0265),
    "diabetes130": ("npz:{}/diabetes130.npz", (81645, 10253, 9868), 37, 8, 0.46),
    "hotel": ("npz:{}/hotel.npz", (95791, 11816, 11783), 16, 13, 0.37),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data of real rows is absent")
@pytest.mark.parametrize(("source", "rows", "features", "dense_width", "positive"), FILES.values(), ids=FILES)
def test_open_convert_and_load(tmp_path, source, rows, features, dense_width, positive, caplog):
    source = source.format(SHARED)
    opened = open_dataset(source, seed=0, cache_dir=tmp_path / "cache")
    convert(source, tmp_path / "columns")
    mapped = open_dataset(f"columns:{tmp_path / 'columns'}", seed=0)
    assert not caplog.records  # not one malformed line
    labels = []
    for dataset in (opened, mapped):
        assert tuple(dataset.rows(split) for split in SPLITS) == rows
        assert (len(dataset.features), dataset.dense_width) == (features, dense_width)
        order = [feature.name for feature in dataset.features]
        batches = list(Loader(dataset, "valid", global_batch=4096, world=4, rank=1, feature_order=order))
        labels.append(np.concatenate([batch.label.numpy() for batch in batches]))
        read = dataset.read("train", np.arange(rows[0]))
        assert read.label.mean() == pytest.approx(positive, abs=0.01)
        assert np.isfinite(read.dense).all()
    np.testing.assert_array_equal(*labels)
