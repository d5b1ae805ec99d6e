"""Small data files for the tests of this folder."""

from pathlib import Path

import numpy as np

FIELDS = 40


def criteo_line(random: np.random.Generator) -> str:
    """A row of a click log in which any field but the label may be missing."""
    label = str(random.integers(2))
    integers = [
        "" if random.random() < 0.2 else str(random.integers(-3, 10 ** random.integers(1, 12))) for _ in range(13)
    ]
    strings = ["" if random.random() < 0.2 else f"{random.integers(16 ** random.integers(1, 9)):x}" for _ in range(26)]
    return "\t".join([label, *integers, *strings])


def criteo_lines(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [criteo_line(random) for _ in range(count)]


def npz_arrays(rows: int = 50, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a valid .npz: three single-valued features, one multi-valued, two dense."""
    random = np.random.default_rng(seed)
    cards = np.array([5, 1, 300])
    lengths = random.integers(0, 4, rows)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return {
        "sparse": np.stack([random.integers(0, card, rows) for card in cards], axis=1).astype(np.int32),
        "cards": cards,
        "names": np.array(["colour", "constant", "place"]),
        "label": random.integers(0, 2, rows).astype(np.uint8),
        "dense": random.standard_normal((rows, 2)).astype(np.float32),
        "split": np.resize([0, 0, 1, 0, 2], rows).astype(np.uint8),
        "ids/tags": random.integers(0, 9, offsets[-1]),
        "offsets/tags": offsets,
        "unrelated": np.zeros(3),
    }


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


def bag(rows, feature: int, sample: int) -> list[int]:
    """Ids of one bag of `Rows`."""
    offsets = np.concatenate(([0], np.cumsum(rows.lengths.ravel())))
    at = feature * rows.lengths.shape[1] + sample
    return rows.ids[offsets[at] : offsets[at + 1]].tolist()
