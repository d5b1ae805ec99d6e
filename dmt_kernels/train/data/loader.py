"""From rows to one rank's batches."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from dmt_kernels.spec.batch import Batch, Jagged
from dmt_kernels.spec.errors import InputError
from dmt_kernels.train.data.dataset import Dataset
from dmt_kernels.train.data.order import SequentialOrder, ShuffledOrder


class Loader:
    """The batches of one rank in one split, made in the background.

    Rank ``g`` gets rows ``g * B .. (g + 1) * B`` of each global batch of ``world * B`` rows. Every rank yields as many
    batches; the last is padded with empty samples of weight 0.

    Batches are made by threads of this process and not by `torch.utils.data.DataLoader`: making one is a few dozen
    numpy calls that release the GIL, every batch is a slice of an epoch's order rather than a collation of samples, and
    worker processes would copy the data set (or map it again), pickle every batch and start slowly on every rank.

    Parameters
    ----------
    dataset : Dataset
        Where rows come from.
    split : str
        "train", "valid" or "test".
    global_batch : int
        Rows of a global batch; ``world`` must divide it.
    rank, world : int
        Which share of it.
    feature_order : Sequence[str]
        Features of a batch, by name, in this order.
    seed : int
        Of the shuffle, together with the epoch.
    shuffle : bool
        Whether rows are visited in another order every epoch (the same on all ranks) or as they lie.
    device : torch.device
        Where batches go; to a GPU from pinned memory, without blocking.
    workers : int
        Threads; 0 makes each batch when it is asked for.
    prefetch : int
        Batches made ahead per thread.

    Raises
    ------
    InputError
        When ``world`` does not divide ``global_batch``, or a feature is not in the data.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        global_batch: int,
        rank: int = 0,
        world: int = 1,
        feature_order: Sequence[str],
        seed: int = 0,
        shuffle: bool = False,
        device: torch.device | str = "cpu",
        workers: int = 1,
        prefetch: int = 2,
    ) -> None:
        if global_batch < 1 or global_batch % world:
            raise InputError(f"batch size {global_batch} cannot be divided evenly among {world} ranks")
        position = {feature.name: f for f, feature in enumerate(dataset.features)}
        for name in feature_order:
            if name not in position:
                raise InputError(f"{dataset.name} has no feature called {name!r}")
        self._dataset, self._split = dataset, split
        self._order = [position[name] for name in feature_order]
        self._global_batch, self._rank, self._share = global_batch, rank, global_batch // world
        self._seed, self._shuffle, self._epoch, self._first = seed, shuffle, 0, 0
        self._device = torch.device(device)
        self._workers, self._prefetch = workers, prefetch
        self._rows = dataset.rows(split)

    def __len__(self) -> int:
        """Return the number of global batches in an epoch."""
        return -(-self._rows // self._global_batch)

    @property
    def samples(self) -> int:
        """Real rows in an epoch, over all ranks."""
        return self._rows

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch whose order the next iterations follow, and the first of its batches that they yield."""
        self._epoch, self._first = epoch, first

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch, or what is left of it."""
        order = ShuffledOrder(self._rows, self._seed, self._epoch) if self._shuffle else SequentialOrder()
        if not self._workers:
            for step in range(self._first, len(self)):
                yield self._to_device(self._make(order, step))
            return
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="dmt-loader")
        try:
            ahead: deque[Future[Batch]] = deque()
            for step in range(self._first, len(self)):
                while len(ahead) < self._workers * self._prefetch and step + len(ahead) < len(self):
                    ahead.append(pool.submit(self._make, order, step + len(ahead)))
                yield self._to_device(ahead.popleft().result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, order: SequentialOrder | ShuffledOrder, step: int) -> Batch:
        first = step * self._global_batch
        global_samples = min(self._global_batch, self._rows - first)
        start = min(self._rank * self._share, global_samples)
        stop = min(start + self._share, global_samples)
        rows = self._dataset.read(self._split, order.rows(first + start, first + stop), self._order)
        padding = self._share - (stop - start)
        lengths = np.pad(rows.lengths, ((0, 0), (0, padding))) if padding else rows.lengths
        offsets = np.zeros(lengths.size + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        weight = np.ones(self._share, np.float32)
        weight[stop - start :] = 0
        batch = Batch(
            dense=torch.from_numpy(np.pad(rows.dense, ((0, padding), (0, 0))) if padding else rows.dense),
            sparse=Jagged(torch.from_numpy(rows.ids), torch.from_numpy(offsets)),
            label=torch.from_numpy(np.pad(rows.label, (0, padding)) if padding else rows.label),
            weight=torch.from_numpy(weight),
            global_samples=global_samples,
        )
        if self._device.type == "cuda":
            batch = _map(batch, torch.Tensor.pin_memory)
        return batch

    def _to_device(self, batch: Batch) -> Batch:
        # In the consumer's thread, so that the copy is queued on the stream that uses it.
        if self._device.type == "cpu":
            return batch
        return _map(batch, lambda tensor: tensor.to(self._device, non_blocking=True))


def _map(batch: Batch, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    sparse = Jagged(move(batch.sparse.ids), move(batch.sparse.offsets))
    return Batch(move(batch.dense), sparse, move(batch.label), move(batch.weight), batch.global_samples)
