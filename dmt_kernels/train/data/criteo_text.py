"""Parse Criteo click-log text a block of lines at a time.

A line is a label (0 or 1), 13 decimal integers and 26 hexadecimal strings of up to 16 digits, separated by tabs; any
but the label may be empty. Fields are decoded eight characters at once inside 64-bit words (SWAR), for all rows
together: a Python loop over fields would be a hundred times slower.
"""

from typing import NamedTuple

import numpy as np

LABEL_AND_INTEGERS = 14
CATEGORICALS = 26
FIELDS = LABEL_AND_INTEGERS + CATEGORICALS
_DIGITS = 16  # of the longest field
_TAB, _NEWLINE, _MINUS = 9, 10, 45

# A digit's value, of either case; anything else has the top bit set.
_VALUES = bytes(int(chr(c), 16) if chr(c) in "0123456789abcdefABCDEF" else 0x80 for c in range(256))
_TOP_BITS = np.uint64(0x8080808080808080)
_OVER_NINE = np.uint64(0x7676767676767676)  # added to a byte above 9, it sets the top bit
# _LAST[n] keeps the n characters before a field's end. Words are little-endian: the last character is the top byte.
_LAST = np.array([0] + [(0xFFFFFFFFFFFFFFFF << 8 * (8 - n)) & 0xFFFFFFFFFFFFFFFF for n in range(1, 9)], np.uint64)


class Parsed(NamedTuple):
    """The well-formed rows of a block of text, and which lines were not.

    Parameters
    ----------
    label : np.ndarray
        ``[n]`` uint8.
    integers : np.ndarray
        ``[13, n]`` int64; 0 where missing.
    categoricals : np.ndarray
        ``[26, n]`` uint64 values of the hexadecimal strings; 0 where missing.
    missing : np.ndarray
        ``[26, n]`` bool.
    lines : int
        Lines in the block.
    malformed : np.ndarray
        Lines, counted from 0, that are not rows.
    """

    label: np.ndarray
    integers: np.ndarray
    categoricals: np.ndarray
    missing: np.ndarray
    lines: int
    malformed: np.ndarray


def parse(text: bytes) -> Parsed:
    """Parse whole lines; each must end in a newline."""
    # Every field is loaded as the words that end at its end, so the first needs something before it.
    padded = b"0" * _DIGITS + text.replace(b"\r\n", b"\n")
    characters = np.frombuffer(padded, np.uint8)
    ends = np.flatnonzero((characters == _TAB) | (characters == _NEWLINE))
    starts = np.concatenate(([_DIGITS], ends + 1))[:-1]
    last = np.flatnonzero(characters[ends] == _NEWLINE)
    good = np.diff(last, prepend=-1) == FIELDS
    rows = np.flatnonzero(good)
    picked = slice(None) if good.all() else (last[rows][:, None] + np.arange(1 - FIELDS, 1)).ravel()
    ends = np.ascontiguousarray(ends[picked].reshape(-1, FIELDS).T)
    starts = np.ascontiguousarray(starts[picked].reshape(-1, FIELDS).T)

    values = padded.translate(_VALUES)
    # words[i] is the 64 bits at byte i, for every i: an overlapping, unaligned view.
    words: np.ndarray = np.ndarray((len(values) - 7,), "<u8", values, strides=(1,))

    label = characters[starts[0]]
    wrong = (ends[0] - starts[0] != 1) | ((label != ord("0")) & (label != ord("1")))

    ends13, starts13 = ends[1:LABEL_AND_INTEGERS], starts[1:LABEL_AND_INTEGERS]
    negative = characters[starts13] == _MINUS
    digits = ends13 - starts13 - negative
    integers, bad = _decode(words, ends13, digits, 10)
    wrong |= (bad | (negative & (digits == 0))).any(axis=0)
    integers = np.where(negative, -integers.astype(np.int64), integers.astype(np.int64))

    lengths = ends[LABEL_AND_INTEGERS:] - starts[LABEL_AND_INTEGERS:]
    categoricals, bad = _decode(words, ends[LABEL_AND_INTEGERS:], lengths, 16)
    wrong |= bad.any(axis=0)

    parsed = (label - ord("0"), integers, categoricals, lengths == 0)
    if wrong.any():
        parsed = tuple(array[..., ~wrong] for array in parsed)  # type: ignore[assignment]
    malformed = np.union1d(np.flatnonzero(~good), rows[wrong])
    return Parsed(*parsed, lines=len(last), malformed=malformed)


def _decode(words: np.ndarray, ends: np.ndarray, lengths: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of the fields of ``lengths`` digits before ``ends``, and which fields are not numbers."""
    values, bad = _decode_word(words[ends - 8], np.minimum(lengths, 8), base)
    bad |= lengths > _DIGITS
    longer = np.nonzero(lengths > 8)
    if len(longer[0]):
        upper, bad_upper = _decode_word(words[ends[longer] - 16], np.minimum(lengths[longer] - 8, 8), base)
        values[longer] += upper * np.uint64(base**8)
        bad[longer] |= bad_upper
    return values, bad


def _decode_word(word: np.ndarray, lengths: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of the last ``lengths`` (0 to 8) digits in each word, first digit in the lowest byte."""
    word &= _LAST[lengths]
    flags = word + _OVER_NINE if base == 10 else word
    bad = ((flags | word) & _TOP_BITS) != 0
    # Neighbouring digits become two-digit numbers, those four-digit, those eight-digit numbers.
    for step, mask in ((1, 0x00FF00FF00FF00FF), (2, 0x0000FFFF0000FFFF), (4, 0x00000000FFFFFFFF)):
        word = (word * np.uint64(base**step) + (word >> np.uint64(8 * step))) & np.uint64(mask)
    return word, bad


def explain(line: bytes) -> str:
    """Say what is wrong with a malformed line."""
    fields = line.rstrip(b"\r\n").split(b"\t")
    if len(fields) != FIELDS:
        return f"{len(fields)} fields instead of {FIELDS}"
    if fields[0] not in (b"0", b"1"):
        return f"label {_shown(fields[0])} is neither 0 nor 1"
    for f, field in enumerate(fields[1:], 1):
        digits = field.removeprefix(b"-") if f < LABEL_AND_INTEGERS else field
        kind, allowed = (
            ("an integer", b"0123456789") if f < LABEL_AND_INTEGERS else ("hexadecimal", b"0123456789abcdefABCDEF")
        )
        if len(digits) > _DIGITS or digits.strip(allowed) or (field and not digits):
            return f"field {f + 1}, {_shown(field)}, is not {kind} of up to {_DIGITS} digits"
    return "malformed"


def _shown(field: bytes) -> str:
    return repr(field[:20].decode("ascii", "backslashreplace"))
