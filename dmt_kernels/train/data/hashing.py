"""Counter-based randomness: the value at any position without the values before it."""

import numpy as np

# splitmix64 (Steele, Lea, Flood, OOPSLA 2014): a Weyl sequence through a 64-bit finaliser.
_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def mix64(values: np.ndarray) -> np.ndarray:
    """Mix each 64-bit value into another; a bijection whose output bits all depend on all input bits.

    Parameters
    ----------
    values : np.ndarray
        uint64, any shape; overwritten when it owns its memory's only use, so pass a temporary.

    Returns
    -------
    np.ndarray
        ``values``, mixed in place.
    """
    shifted = values >> np.uint64(30)
    values ^= shifted
    values *= _MIX1
    np.right_shift(values, np.uint64(27), out=shifted)
    values ^= shifted
    values *= _MIX2
    np.right_shift(values, np.uint64(31), out=shifted)
    values ^= shifted
    return values


def random64(keys: np.ndarray | int, counters: np.ndarray) -> np.ndarray:
    """Element ``counters`` of the splitmix64 streams ``keys``.

    Parameters
    ----------
    keys : np.ndarray or int
        uint64 stream seeds.
    counters : np.ndarray
        Integer positions; broadcast against ``keys``.

    Returns
    -------
    np.ndarray
        uint64, uniform over all 64-bit values.
    """
    steps = counters.astype(np.uint64) * _WEYL
    return mix64(np.atleast_1d(steps + np.asarray(keys, dtype=np.uint64)))


def permutation(key: int, count: int) -> np.ndarray:
    """Return a permutation of ``0..count-1`` (int64) that depends on nothing but its arguments.

    NumPy's own generators may change their streams between versions, and every rank must agree.
    """
    return np.argsort(random64(key, np.arange(count)), kind="stable")
