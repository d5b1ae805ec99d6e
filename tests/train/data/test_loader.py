import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_kernels.spec.errors import InputError
from dmt_kernels.train.data import Loader, SyntheticDataset
from dmt_kernels.train.data.order import ShuffledOrder


@pytest.fixture(scope="module")
def dataset():
    return SyntheticDataset(500, seed=3, group_sizes=(3, 2, 2))


def names(dataset):
    return [feature.name for feature in dataset.features]


def samples(batches):
    """Real samples of one rank's or several ranks' batches: (dense, label, bags of every feature)."""
    rows = []
    for batch in batches:
        size = len(batch.label)
        features = batch.sparse.offsets.numel() // size
        for n in range(size):
            bags = []
            for f in range(features):
                start, stop = batch.sparse.offsets[f * size + n : f * size + n + 2].tolist()
                bags.append(batch.sparse.ids[start:stop].tolist())
            if batch.weight[n]:
                rows.append((batch.dense[n].tolist(), batch.label[n].item(), bags))
            else:
                assert not any(bags)
                assert batch.label[n] == 0
                assert not batch.dense[n].any()
    return rows


@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("global_batch", [12, 60, 600], ids=["many", "few", "one_short"])
def test_shares_of_the_ranks_make_up_the_global_batch(dataset, world, global_batch, shuffle):
    options = {"global_batch": global_batch, "feature_order": names(dataset), "seed": 1, "shuffle": shuffle}
    whole = list(Loader(dataset, "train", **options))
    shares = [list(Loader(dataset, "train", **options, rank=rank, world=world)) for rank in range(world)]
    assert sum(batch.global_samples for batch in whole) == 500
    assert len(whole) == -(-500 // global_batch)
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert all(len(part.label) == global_batch // world for part in parts)
        assert all(part.global_samples == batch.global_samples for part in parts)
        assert samples(parts) == samples([batch])
        assert torch.cat([part.weight for part in parts]).equal(batch.weight)
        assert batch.weight.sum() == batch.global_samples
    assert all(len(share) == len(whole) for share in shares)


def test_tensors(dataset):
    (batch,) = Loader(dataset, "valid", global_batch=70, feature_order=names(dataset))
    assert (batch.dense.dtype, tuple(batch.dense.shape)) == (torch.float32, (70, dataset.dense_width))
    assert (batch.label.dtype, batch.weight.dtype) == (torch.float32, torch.float32)
    assert (batch.sparse.ids.dtype, batch.sparse.offsets.dtype) == (torch.int32, torch.int64)
    assert batch.sparse.offsets.shape == (7 * 70 + 1,)
    assert batch.sparse.offsets[-1] == len(batch.sparse.ids)
    assert batch.global_samples == 62


def test_feature_order(dataset):
    turned = names(dataset)[::-1]
    (straight,) = Loader(dataset, "valid", global_batch=62, feature_order=turned[::-1])
    (reverse,) = Loader(dataset, "valid", global_batch=62, feature_order=turned)
    for ours, theirs in zip(samples([straight]), samples([reverse]), strict=True):
        assert ours[2] == theirs[2][::-1]


def test_epochs_visit_every_row_once_in_another_order(dataset):
    loader = Loader(dataset, "train", global_batch=64, feature_order=names(dataset), seed=5, shuffle=True)
    first, again = samples(loader), samples(loader)
    loader.set_epoch(1)
    second = samples(loader)
    assert first == again
    assert first != second
    straight = samples(Loader(dataset, "train", global_batch=64, feature_order=names(dataset)))
    assert sorted(first) == sorted(second) == sorted(straight)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_may_begin_later(workers, dataset):
    loader = Loader(
        dataset, "train", global_batch=64, feature_order=names(dataset), seed=5, shuffle=True, workers=workers
    )
    whole = list(loader)
    for first in (1, len(loader) - 1, len(loader)):
        loader.set_epoch(0, first)
        assert samples(loader) == samples(whole[first:])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_background_threads_change_nothing(dataset, workers):
    options = {"global_batch": 64, "feature_order": names(dataset), "shuffle": True}
    expected = samples(Loader(dataset, "train", **options, workers=0))
    loader = Loader(dataset, "train", **options, workers=workers)
    assert samples(loader) == expected


def test_an_epoch_may_be_left_early(dataset):
    loader = Loader(dataset, "train", global_batch=10, feature_order=names(dataset))
    first = samples([next(iter(loader))])
    assert samples([next(iter(loader))]) == first


class Broken(SyntheticDataset):
    def read(self, split, index, order=None):
        raise RuntimeError("the disk is gone")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_reach_the_consumer(workers):
    dataset = Broken(100)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(Loader(dataset, "train", global_batch=10, feature_order=names(dataset), workers=workers))


def test_bad_input(dataset):
    with pytest.raises(InputError, match="batch size 10 cannot be divided evenly among 3 ranks"):
        Loader(dataset, "train", global_batch=10, world=3, feature_order=names(dataset))
    with pytest.raises(InputError, match="batch size 0"):
        Loader(dataset, "train", global_batch=0, feature_order=names(dataset))
    with pytest.raises(InputError, match="no feature called 'absent'"):
        Loader(dataset, "train", global_batch=10, feature_order=["absent"])


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(0, 200),
    block_rows=st.integers(1, 20),
    window_blocks=st.integers(1, 5),
    step=st.integers(1, 70),
    epoch=st.integers(0, 3),
)
def test_shuffle_in_windows_is_a_permutation(count, block_rows, window_blocks, step, epoch):
    order = ShuffledOrder(count, 7, epoch, block_rows, window_blocks)
    pieces = [order.rows(start, min(start + step, count)) for start in range(0, count, step)]
    rows = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
    assert sorted(rows) == list(range(count))
    # Any range alone is the same, also when the windows are visited backwards.
    for start in reversed(range(0, count, step)):
        np.testing.assert_array_equal(order.rows(start, min(start + step, count)), rows[start : start + step])
