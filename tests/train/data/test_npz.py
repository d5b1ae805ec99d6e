import numpy as np
import pytest

from dmt_kernels.spec.errors import InputError
from dmt_kernels.train.data import SPLITS, open_dataset

from .sources import bag, npz_arrays, save_npz


def open_arrays(tmp_path, arrays, seed=0):
    return open_dataset(f"npz:{save_npz(tmp_path / 'rows.npz', arrays)}", seed=seed)


def test_rows_keep_their_order_within_a_split(tmp_path):
    arrays = npz_arrays()
    dataset = open_arrays(tmp_path, arrays)
    assert [(f.name, f.rows, f.multi) for f in dataset.features] == [
        ("colour", 5, False),
        ("constant", 1, False),
        ("place", 300, False),
        ("tags", int(arrays["ids/tags"].max()) + 1, True),
    ]
    for code, split in enumerate(SPLITS):
        rows = np.flatnonzero(arrays["split"] == code)
        assert dataset.rows(split) == len(rows)
        read = dataset.read(split, np.arange(len(rows)))
        np.testing.assert_array_equal(read.dense, arrays["dense"][rows])
        np.testing.assert_array_equal(read.label, arrays["label"][rows])
        for n, row in enumerate(rows):
            assert [bag(read, f, n) for f in range(3)] == [[id] for id in arrays["sparse"][row]]
            tags = arrays["ids/tags"][arrays["offsets/tags"][row] : arrays["offsets/tags"][row + 1]]
            assert bag(read, 3, n) == tags.tolist()


def test_read_in_any_order_of_rows_and_features(tmp_path):
    dataset = open_arrays(tmp_path, npz_arrays())
    straight = dataset.read("train", np.arange(dataset.rows("train")))
    index = np.array([7, 0, 7, 29])
    read = dataset.read("train", index, order=[3, 0])
    assert read.ids.dtype == np.int32
    for n, row in enumerate(index):
        assert bag(read, 0, n) == bag(straight, 3, row)
        assert bag(read, 1, n) == bag(straight, 0, row)


def test_without_optional_arrays(tmp_path):
    arrays = npz_arrays(200)
    dataset = open_arrays(tmp_path, {key: arrays[key] for key in ("sparse", "cards", "label")})
    assert [f.name for f in dataset.features] == ["f0", "f1", "f2"]
    assert dataset.dense_width == 0
    assert [dataset.rows(split) for split in SPLITS] == [160, 20, 20]


def test_random_split_depends_on_the_seed_alone(tmp_path):
    arrays = npz_arrays(200)
    del arrays["split"]

    def training_labels(seed):
        return open_arrays(tmp_path, arrays, seed).read("train", np.arange(160)).dense

    np.testing.assert_array_equal(training_labels(1), training_labels(1))
    assert (training_labels(1) != training_labels(2)).any()


def test_only_multi_valued_features(tmp_path):
    arrays = npz_arrays()
    for key in ("sparse", "cards", "names"):
        del arrays[key]
    arrays["cards/tags"] = np.int64(77)
    dataset = open_arrays(tmp_path, arrays)
    assert [(f.name, f.rows) for f in dataset.features] == [("tags", 77)]


def test_ids_beyond_int32_stay_int64(tmp_path):
    arrays = npz_arrays() | {"cards": np.array([5, 1, 2**40])}
    arrays["sparse"] = arrays["sparse"].astype(np.int64)
    arrays["sparse"][0, 2] = 2**40 - 1
    dataset = open_arrays(tmp_path, arrays)
    read = dataset.read("train", np.arange(1))
    assert read.ids.dtype == np.int64
    assert bag(read, 2, 0) == [2**40 - 1]


def changed(key, value):
    def change(arrays):
        arrays[key] = value(arrays[key].copy()) if callable(value) else value

    return change


def put(index, value):
    def edit(array):
        array = array.astype(np.float32) if isinstance(value, float) else array
        array[index] = value
        return array

    return edit


BAD = {
    "no_label": (lambda arrays: arrays.pop("label"), "no array called label"),
    "label_2d": (changed("label", lambda a: a[:, None]), "label has shape (50, 1)"),
    "label_nan": (changed("label", put(7, float("nan"))), "label of row 7 is nan"),
    "label_2": (changed("label", put(8, 2)), "label of row 8 is 2"),
    "label_text": (changed("label", lambda a: a.astype(str)), "label has dtype"),
    "label_empty": (changed("label", lambda a: a[:0]), "label has shape (0,)"),
    "no_cards": (lambda arrays: arrays.pop("cards"), "no array called cards"),
    "sparse_1d": (changed("sparse", lambda a: a[:, 0]), "sparse has shape (50,)"),
    "sparse_short": (changed("sparse", lambda a: a[:-1]), "sparse has shape (49, 3)"),
    "sparse_float": (changed("sparse", lambda a: a.astype(float)), "sparse has dtype float64"),
    "id_too_big": (changed("sparse", put((9, 2), 300)), "feature 'place', row 9: id 300 is outside [0, 300)"),
    "id_negative": (changed("sparse", put((9, 0), -1)), "feature 'colour', row 9: id -1 is outside [0, 5)"),
    "cards_short": (changed("cards", lambda a: a[1:]), "cards has shape (2,)"),
    "cards_zero": (changed("cards", put(1, 0)), "cardinality of feature 'constant' is 0"),
    "names_short": (changed("names", lambda a: a[1:]), "names has shape (2,)"),
    "names_twice": (changed("names", lambda a: a[[0, 0, 2]]), "two features are called 'colour'"),
    "dense_short": (changed("dense", lambda a: a[:-1]), "dense has shape (49, 2)"),
    "dense_nan": (changed("dense", put((5, 1), float("nan"))), "dense of row 5, column 1 is nan"),
    "dense_text": (changed("dense", lambda a: a.astype(str)), "dense has dtype"),
    "split_short": (changed("split", lambda a: a[1:]), "split has shape (49,)"),
    "split_3": (changed("split", put(4, 3)), "split of row 4 is 3"),
    "offsets_missing": (lambda arrays: arrays.pop("offsets/tags"), "ids/tags has no offsets/tags"),
    "ids_missing": (lambda arrays: arrays.pop("ids/tags"), "offsets/tags has no ids/tags"),
    "offsets_short": (changed("offsets/tags", lambda a: a[:-1]), "offsets/tags has shape (50,)"),
    "offsets_wrong_end": (changed("offsets/tags", put(-1, 5000)), "offsets/tags does not ascend"),
    "bag_id_too_big": (changed("cards/tags", np.int64(2)), "feature 'tags', row"),
    "pickle": (changed("label", lambda a: a.astype(object)), "Object arrays cannot be loaded"),
}


@pytest.mark.parametrize(("break_it", "sentence"), BAD.values(), ids=BAD)
def test_bad_arrays_are_named(tmp_path, break_it, sentence):
    arrays = npz_arrays() | {"cards/tags": np.int64(9)}
    break_it(arrays)
    with pytest.raises(InputError) as error:
        open_arrays(tmp_path, arrays)
    assert sentence in str(error.value)
    assert "rows.npz" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"], ids=["empty", "text", "torn"])
def test_not_an_archive(tmp_path, content):
    path = tmp_path / "rows.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read as an \.npz archive"):
        open_dataset(f"npz:{path}", seed=0)


def test_single_array_and_missing_file(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros(3))
    with pytest.raises(InputError, match="single array"):
        open_dataset(f"npz:{tmp_path / 'rows.npy'}", seed=0)
    with pytest.raises(InputError, match="no such file"):
        open_dataset(f"npz:{tmp_path / 'absent.npz'}", seed=0)
