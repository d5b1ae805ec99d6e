"""One seed for the whole run, a different stream for every named thing in it."""

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """Mix ``seed`` with names into a 63-bit seed.

    Every rank derives the same seed for the same table or parameter, whatever it holds and in
    whatever order it is built, so that no broadcast is needed and no layout changes the model.

    Parameters
    ----------
    seed : int
        The run's seed.
    *names : str or int
        What the stream is for, for example ``("table", "user_id", 3)``.

    Returns
    -------
    int
        A seed in ``[0, 2**63)``.
    """
    text = repr((int(seed), *names)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
