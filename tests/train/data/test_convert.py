import json

import numpy as np
import pytest

from dmt_kernels.spec.errors import InputError
from dmt_kernels.train.data import SPLITS, convert, open_dataset

from .sources import criteo_lines, npz_arrays, save_npz


def assert_same(ours, theirs):
    assert ours.features == theirs.features
    assert ours.dense_width == theirs.dense_width
    assert ours.best_auc == theirs.best_auc
    assert ours.planted_groups == theirs.planted_groups
    for split in SPLITS:
        assert ours.rows(split) == theirs.rows(split)
        index = np.random.default_rng(0).permutation(ours.rows(split))
        for mine, other in zip(ours.read(split, index), theirs.read(split, index), strict=True):
            assert mine.dtype == other.dtype
            np.testing.assert_array_equal(mine, other)


@pytest.fixture
def npz(tmp_path):
    return f"npz:{save_npz(tmp_path / 'rows.npz', npz_arrays())}"


def test_npz(tmp_path, npz):
    convert(npz, tmp_path / "out")
    assert_same(open_dataset(f"columns:{tmp_path / 'out'}", seed=0), open_dataset(npz, seed=0))


def test_synthetic(tmp_path, monkeypatch):
    monkeypatch.setattr("dmt_kernels.train.data.conversion.CHUNK_ROWS", 300)
    convert("synthetic:1000", tmp_path / "out", seed=5)
    assert_same(open_dataset(f"columns:{tmp_path / 'out'}", seed=0), open_dataset("synthetic:1000", seed=5))


def test_no_bag_holds_an_id(tmp_path):
    arrays = npz_arrays() | {"ids/tags": np.empty(0, np.int64), "offsets/tags": np.zeros(51, np.int64)}
    source = f"npz:{save_npz(tmp_path / 'rows.npz', arrays)}"
    convert(source, tmp_path / "out")
    assert_same(open_dataset(f"columns:{tmp_path / 'out'}", seed=0), open_dataset(source, seed=0))


@pytest.mark.parametrize("workers", [1, 2])
def test_criteo(tmp_path, workers):
    for day in range(2):
        (tmp_path / f"day_{day}").write_text("\n".join(criteo_lines(60, seed=day)))
    source = f"criteo:{tmp_path}/day_*"
    convert(source, tmp_path / "out", hash_rows=50, workers=workers)
    opened = open_dataset(source, seed=0, hash_rows=50, cache_dir=tmp_path / "cache")
    assert_same(open_dataset(f"columns:{tmp_path / 'out'}", seed=0), opened)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"meta.json", "part-00000", "part-00001"}


def test_a_failure_leaves_nothing_behind(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "log").write_text("not a log\n")
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(InputError, match="malformed"):
        convert(f"criteo:{source / 'log'}", target / "out")
    with pytest.raises(InputError, match="no such file"):
        convert(f"npz:{source / 'absent'}", target / "out")
    assert list(target.iterdir()) == []


def test_target_that_holds_something_is_refused(tmp_path, npz):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(InputError, match="out already exists"):
        convert(npz, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_no_workers(tmp_path, npz):
    with pytest.raises(InputError, match="0 workers"):
        convert(npz, tmp_path / "out", workers=0)


def cut_column(directory):
    path = directory / "part-00000" / "label.npy"
    path.write_bytes(path.read_bytes()[:-5])


def replace_column(directory):
    np.save(directory / "part-00000" / "ids-001.npy", np.zeros(7, np.int32))


def drop_column(directory):
    (directory / "part-00000" / "offsets-003.npy").unlink()


def drop_key(directory):
    meta = json.loads((directory / "meta.json").read_text())
    del meta["splits"]
    (directory / "meta.json").write_text(json.dumps(meta))


DAMAGE = {
    "no_meta": (lambda directory: (directory / "meta.json").unlink(), "is not a columns directory"),
    "torn_meta": (lambda directory: (directory / "meta.json").write_text("{"), "meta.json is damaged"),
    "other_format": (lambda directory: (directory / "meta.json").write_text('{"format": "2"}'), "has format '2'"),
    "no_splits": (drop_key, "meta.json is damaged"),
    "torn_column": (cut_column, "cannot map .*label.npy"),
    "short_column": (replace_column, "ids-001.npy has shape"),
    "missing_column": (drop_column, "cannot map .*offsets-003.npy"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_directories_are_named(tmp_path, npz, damage, sentence):
    convert(npz, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(InputError, match=sentence):
        open_dataset(f"columns:{tmp_path / 'out'}", seed=0)


@pytest.mark.parametrize(
    "source", ["", "csv:x", "npz", "npz:", "synthetic:", "synthetic:x", "synthetic:0", "synthetic:-5"]
)
def test_unknown_sources(source):
    with pytest.raises(InputError):
        open_dataset(source, seed=0)
