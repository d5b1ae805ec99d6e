"""A synthetic click log with planted feature groups and a known best-possible AUC.

Features fall into groups. Row by row, each group draws one of `TOPICS` topics; a feature of the group draws an id of
that topic (or, with chance 1 - `AGREEMENT`, of any topic) by Zipf's law within the topic: ``id = zipf_rank * TOPICS +
topic``. So ids of one group occur together, and those of different groups are independent.

Every topic of a group has a vector ``v`` and a bias ``m``, both the same for all features of the group, which are
therefore alike to a partitioner. With ``V_f`` the sum of the vectors over the ids in feature f's bag,

    logit = offset + sum over groups of [ sum over pairs f < f' of <V_f, V_f'> + sum over ids of m ]
                   + weighted sum of the dense features.

It depends on nothing but what a model sees, and the label is drawn from ``sigmoid(logit)``: no model can be expected to
beat the AUC of the logits, and one with dot interactions can come close.

Every number is a hash of (seed, column, row) in integer arithmetic, so that any row can be made alone and is the same
whoever makes it.
"""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from dmt_kernels.spec.seeding import derive_seed
from dmt_kernels.train.data.dataset import FeatureInfo, Rows, id_dtype
from dmt_kernels.train.data.hashing import permutation, random64

DEFAULT_ROWS = 400_000
TOPICS = 8
AGREEMENT = 0.75
GROUP_SIZES = (6, 5, 4, 4, 4, 3)
VECTOR = 3  # dimensions of a topic's vector
LONGEST_BAG = 4
MULTI_PER_GROUP = 1  # in the first three groups
DENSE_WIDTH = 4
BIAS = 0.2  # deviation of a topic's bias: what a model learns in its first steps
INTERACTION = 0.55  # deviation of what one group's pairs add to the logit
DENSE_WEIGHT = 0.3
MEAN_LOGIT = -1.0
_PLAN_ROWS = 8192  # rows that fix the scales
_ZIPF_BITS = 12  # of the table that inverts the cumulative distribution
_AUC_ROWS = 8192


class SyntheticDataset:
    """Rows made on demand; see the module's description.

    Parameters
    ----------
    rows : int
        Training rows. An eighth as many again (at least one) validate, and as many test.
    seed : int
        Of everything: cardinalities, groups, vectors and rows.
    group_sizes : Sequence[int]
        Features per planted group.
    """

    def __init__(self, rows: int = DEFAULT_ROWS, seed: int = 0, group_sizes: Sequence[int] = GROUP_SIZES) -> None:
        self.name = f"synthetic:{rows}"
        self.dense_width = DENSE_WIDTH
        held_out = max(1, rows // 8)
        self._starts = {"train": (0, rows), "valid": (rows, held_out), "test": (rows + held_out, held_out)}
        self._seed = derive_seed(seed, "synthetic")

        count = sum(group_sizes)
        # Features of a group are scattered over the table of features: nothing gives the groups away.
        group_of = np.repeat(np.arange(len(group_sizes)), group_sizes)[permutation(self._key("groups"), count)]
        members: list[list[int]] = [np.flatnonzero(group_of == g).tolist() for g in range(len(group_sizes))]
        multi = {f for group in members[:3] for f in group[:MULTI_PER_GROUP]}
        # Cardinalities from 24 to 8,000, evenly spaced on a logarithmic scale.
        sizes = (3 * (1000 / 3) ** (np.arange(count) / max(count - 1, 1))).astype(np.int64)
        self._zipf_rows = sizes[permutation(self._key("cardinalities"), count)]
        self.features = tuple(
            FeatureInfo(f"f{f:02d}", int(self._zipf_rows[f]) * TOPICS, multi=f in multi) for f in range(count)
        )
        self.planted_groups = tuple(tuple(self.features[f].name for f in group) for group in members)
        self._members = members
        self._plan_slots(group_of)
        self._plan_logit(len(group_sizes))

    def _key(self, *names: str | int) -> int:
        return derive_seed(self._seed, *names)

    def _plan_slots(self, group_of: np.ndarray) -> None:
        """Lay out what a row draws: a slot per id, the longest bag's for a multi-valued feature."""
        slots = [LONGEST_BAG if feature.multi else 1 for feature in self.features]
        self._slot_starts: list[int] = np.cumsum([0] + slots).tolist()
        feature_of = np.repeat(np.arange(len(slots)), slots)
        self._slot_group = group_of[feature_of]
        self._slot_keys = np.array([[self._key("id", slot)] for slot in range(len(feature_of))], np.uint64)
        self._length_keys = {f: self._key("length", f) for f, feature in enumerate(self.features) if feature.multi}
        self._dense_keys = np.array([[self._key("dense", k)] for k in range(DENSE_WIDTH)], np.uint64)
        self._label_key = self._key("label")
        self._group_keys = np.array([[self._key("topic", g)] for g in range(group_of.max() + 1)], np.uint64)
        # Zipf's law with exponent 1, cut into integer steps: rank r has cumulative probability
        # log(r + 1) / log(R + 1), so its inverse at u is (R + 1)^u - 1, times 2^16 for the ranks between two steps.
        steps = np.arange((1 << _ZIPF_BITS) + 1) / (1 << _ZIPF_BITS)
        curves = [((rows + 1.0) ** steps - 1) * 65536 for rows in self._zipf_rows]
        self._zipf = np.ascontiguousarray(np.stack(curves)[feature_of].astype(np.uint32))
        self._slot_zipf_rows = self._zipf_rows[feature_of].astype(np.uint32)[:, None]

    def _plan_logit(self, groups: int) -> None:
        def normal(name: str, *shape: int) -> np.ndarray:
            draws = random64(self._key(name), np.arange(int(np.prod(shape)) * 4)).reshape(*shape, 4)
            return ((draws >> np.uint64(40)).astype(np.float64).sum(-1) / 2**24 - 2) * np.sqrt(3)

        # [VECTOR, G * TOPICS + 1] and [G * TOPICS + 1]: the topic after the last, of unused slots, has neither.
        self._vectors = np.zeros((VECTOR, groups * TOPICS + 1), np.float32)
        self._vectors[:, :-1] = normal("vectors", VECTOR, groups * TOPICS)
        self._biases = np.zeros(groups * TOPICS + 1, np.float32)
        self._biases[:-1] = BIAS * normal("biases", groups * TOPICS)
        self._dense_weights = (DENSE_WEIGHT * normal("dense weights", DENSE_WIDTH)).astype(np.float32)
        self._offset = np.float32(0)
        # Random, but not left to chance: every group's pairs matter equally, whatever its size and its draws.
        # Rounded, so that the last bits of a machine's sums do not matter.
        rows = np.arange(_PLAN_ROWS)
        pairs = np.stack(list(self._pairs(self._draw(rows)[0], self._present(rows))))
        scale = np.sqrt(INTERACTION / pairs.std(axis=1)).round(3)
        self._vectors[:, :-1] *= np.repeat(scale, TOPICS)
        self._offset = np.float32((MEAN_LOGIT - self._logits(rows).mean()).round(3))

    def rows(self, split: str) -> int:
        """Return the number of rows of a split."""
        return self._starts[split][1]

    def read(self, split: str, index: np.ndarray, order: Sequence[int] | None = None) -> Rows:
        """Make rows of a split; see `Dataset.read`."""
        rows = index + self._starts[split][0]
        topics, ids = self._draw(rows)
        present = self._present(rows)
        dense = self._dense(rows)
        uniform = (random64(self._label_key, rows) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
        label = uniform < _sigmoid(self._logit(topics, present, dense))

        columns, lengths = [], []
        for f in range(len(self.features)) if order is None else order:
            start, stop = self._slot_starts[f], self._slot_starts[f + 1]
            if f in present:
                mask = present[f].T  # [n, LONGEST_BAG]: a bag's ids lie next to each other
                columns.append(ids[start:stop].T[mask])
                lengths.append(mask.sum(axis=1))
            else:
                columns.append(ids[start])
                lengths.append(np.ones(len(rows), np.int64))
        return Rows(
            dense=np.ascontiguousarray(dense.T),
            ids=np.concatenate(columns or [np.empty(0)]).astype(id_dtype(self.features), copy=False),
            lengths=np.stack(lengths) if lengths else np.empty((0, len(rows)), np.int64),
            label=label.astype(np.float32),
        )

    def logits(self, split: str, index: np.ndarray) -> np.ndarray:
        """True logits of rows, ``[n]`` float32."""
        return self._logits(index + self._starts[split][0])

    @functools.cached_property
    def best_auc(self) -> float | None:
        """AUC of the true logits on the test split."""
        rows = self.rows("test")
        chunks = [np.arange(first, min(first + _AUC_ROWS, rows)) for first in range(0, rows, _AUC_ROWS)]
        score = np.concatenate([self.logits("test", chunk) for chunk in chunks])
        label = np.concatenate([self.read("test", chunk, ()).label for chunk in chunks])
        return _auc(label, score)

    def _draw(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Topics (within all groups, ``[S, n]``) and ids (``[S, n]`` uint32) of all slots."""
        group_topic = (random64(self._group_keys, rows) >> np.uint64(61)).astype(np.uint32)
        bits = random64(self._slot_keys, rows)
        high, low = (bits >> np.uint64(32)).astype(np.uint32), bits.astype(np.uint32)
        # One word per slot: 12 + 16 bits for the Zipf rank, 16 for agreement, 3 for a topic of its own.
        step = (high >> np.uint32(32 - _ZIPF_BITS)).astype(np.intp)
        step += (np.arange(len(step)) * self._zipf.shape[1])[:, None]
        zipf = self._zipf.ravel()
        below = zipf[step]
        step += 1
        within = (high >> np.uint32(4)) & np.uint32(0xFFFF)
        rank = (
            below.astype(np.uint64) + ((zipf[step] - below).astype(np.uint64) * within >> np.uint64(16))
        ) >> np.uint64(16)
        agrees = (low >> np.uint32(16)) < np.uint32(AGREEMENT * 65536)
        topic = np.where(agrees, group_topic[self._slot_group], low & np.uint32(TOPICS - 1))
        ids = np.minimum(rank.astype(np.uint32), self._slot_zipf_rows - np.uint32(1)) * np.uint32(TOPICS) + topic
        return topic + (self._slot_group * TOPICS)[:, None], ids

    def _present(self, rows: np.ndarray) -> dict[int, np.ndarray]:
        """Which slots of the multi-valued features are filled, ``[LONGEST_BAG, n]`` bool each."""
        lengths = np.array([0, 1, 1, 1, 2, 2, 3, 4])  # mean 1.75
        return {
            f: np.arange(LONGEST_BAG)[:, None] < lengths[random64(self._length_keys[f], rows) >> np.uint64(61)]
            for f in self._length_keys
        }

    def _dense(self, rows: np.ndarray) -> np.ndarray:
        """``[K, n]`` float32, nearly standard normal: the sum of four 16-bit uniform numbers of one hash."""
        bits = random64(self._dense_keys, rows)
        total = np.zeros(bits.shape, np.float32)
        for shift in (0, 16, 32, 48):
            total += (bits >> np.uint64(shift)).astype(np.uint16)
        return (total - np.float32(2 * 65535)) * np.float32(np.sqrt(3) / 65536)

    def _logits(self, rows: np.ndarray) -> np.ndarray:
        return self._logit(self._draw(rows)[0], self._present(rows), self._dense(rows))

    def _logit(self, topics: np.ndarray, present: dict[int, np.ndarray], dense: np.ndarray) -> np.ndarray:
        """True logits from what `_draw`, `_present` and `_dense` return; empties the unused slots of ``topics``."""
        logit = np.full(topics.shape[1], self._offset)
        for pairs in self._pairs(topics, present):
            logit += pairs
        logit += self._biases[topics].sum(axis=0)
        for k in range(DENSE_WIDTH):
            logit += self._dense_weights[k] * dense[k]
        return logit

    def _pairs(self, topics: np.ndarray, present: dict[int, np.ndarray]) -> Iterator[np.ndarray]:
        """Sum over pairs of features of <V_f, V_f'>, ``[n]`` for each group."""
        for f, mask in present.items():
            topics[self._slot_starts[f] : self._slot_starts[f + 1]][~mask] = len(self._biases) - 1
        vectors = np.take(self._vectors, topics, axis=1)  # [VECTOR, S, n]
        for group in self._members:
            total, squares = np.zeros_like(vectors[:, 0]), np.zeros_like(vectors[:, 0])
            for f in group:
                start, stop = self._slot_starts[f], self._slot_starts[f + 1]
                pooled = vectors[:, start] if stop == start + 1 else vectors[:, start:stop].sum(axis=1)
                total += pooled
                squares += pooled * pooled
            # The square of a sum is the squares and twice all pairs.
            yield (total * total - squares).sum(axis=0) * np.float32(0.5)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def _auc(label: np.ndarray, score: np.ndarray) -> float | None:
    """Chance that a positive scores above a negative, ties counting half (Mann-Whitney)."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    positives = label.sum()
    if positives in (0, len(label)):
        return None
    return float((ranks[label > 0].sum() - positives * (positives + 1) / 2) / (positives * (len(label) - positives)))
