import functools
import gzip
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_kernels.spec.errors import InputError
from dmt_kernels.train.data import SPLITS, criteo, open_dataset
from dmt_kernels.train.data.criteo_text import explain, parse

from .sources import FIELDS, bag, criteo_line, criteo_lines


def parse_slowly(line: str):
    """The row of a line by Python's own parsers, or None."""
    fields = line.split("\t")
    if len(fields) != FIELDS or fields[0] not in ("0", "1"):
        return None
    integers, strings = fields[1:14], fields[14:]
    for allowed, values in (
        ("0123456789", [field.removeprefix("-") for field in integers]),
        ("0123456789abcdefABCDEF", strings),
    ):
        if any(set(value) - set(allowed) or len(value) > 16 for value in values):
            return None
    if "-" in integers:
        return None
    return int(fields[0]), [int(field or 0) for field in integers], [int(field or "0", 16) for field in strings]


field = st.one_of(
    st.just(""),
    st.integers(-(10**18), 10**18).map(str),
    st.integers(0, 2**64).map("{:x}".format),
    st.sampled_from(
        ["-", "--1", "1-", "+1", "1.5", "g", "ABCDEF", "0x1f", " 1", "é", "9999999999999999", "-0", "00000000a"]
    ),
)


@st.composite
def any_line(draw):
    """A good row of which one field, or the number of fields, may be anything."""
    fields = criteo_line(np.random.default_rng(draw(st.integers(0, 1000)))).split("\t")
    kind = draw(st.sampled_from(["good", "field", "shorter", "longer", "blank"]))
    if kind == "field":
        fields[draw(st.integers(0, FIELDS - 1))] = draw(field)
    line = "\t".join(fields)
    return {"shorter": line.rpartition("\t")[0], "longer": line + "\t1", "blank": ""}.get(kind, line)


@settings(deadline=None)
@given(st.lists(any_line(), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_parser_agrees_with_python(lines, newline):
    parsed = parse("".join(line + newline for line in lines).encode())
    expected = [parse_slowly(line) for line in lines]
    rows = [row for row in expected if row is not None]
    assert parsed.lines == len(lines)
    assert parsed.malformed.tolist() == [i for i, row in enumerate(expected) if row is None]
    assert parsed.label.tolist() == [row[0] for row in rows]
    assert parsed.integers.T.tolist() == [row[1] for row in rows]
    assert parsed.categoricals.T.tolist() == [row[2] for row in rows]
    good = [line for line, row in zip(lines, expected, strict=True) if row is not None]
    assert parsed.missing.T.tolist() == [[not text for text in line.split("\t")[14:]] for line in good]
    assert all(explain(lines[i].encode()) != "malformed" for i in parsed.malformed)


def write(path, lines):
    text = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def open_log(tmp_path, pattern, **options):
    return open_dataset(f"criteo:{pattern}", seed=0, cache_dir=tmp_path / "cache", **options)


def everything(dataset):
    """All rows in file order as a list of (label, dense, bags)."""
    rows = []
    for split in SPLITS:
        read = dataset.read(split, np.arange(dataset.rows(split)))
        bags = range(len(dataset.features))
        rows += [
            (read.label[n], read.dense[n].tolist(), [bag(read, f, n) for f in bags]) for n in range(len(read.label))
        ]
    return rows


def test_files_divided_zipped_and_joined_give_the_same_rows(tmp_path):
    lines = criteo_lines(300)
    write(tmp_path / "whole.tsv", lines)
    for i, name in enumerate(["day_0.gz", "day_1", "day_2.gz"]):
        write(tmp_path / name, lines[i * 100 : (i + 1) * 100])
    whole = open_log(tmp_path, tmp_path / "whole.tsv", hash_rows=1000)
    days = open_log(tmp_path, f"{tmp_path}/day_*", hash_rows=1000)
    assert [whole.rows(split) for split in SPLITS] == [240, 30, 30]
    assert everything(days) == everything(whole)
    # A shuffled read crosses the files.
    index = np.random.default_rng(0).permutation(240)
    for ours, theirs in zip(days.read("train", index), whole.read("train", index), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_values(tmp_path):
    lines = criteo_lines(50)
    rows = everything(open_log(tmp_path, write(tmp_path / "log", lines), hash_rows=7))
    for line, (label, dense, bags) in zip(lines, rows, strict=True):
        fields = line.split("\t")
        assert label == float(fields[0])
        expected = [math.log1p(max(int(text or 0), 0)) for text in fields[1:14]]
        np.testing.assert_allclose(dense, expected, rtol=1e-6)
        for text, ids in zip(fields[14:], bags, strict=True):
            assert len(ids) == 1
            assert ids[0] == 0 if not text else 1 <= ids[0] < 7


def test_hash_is_pinned_and_spreads():
    # Changing the hash silently would make every saved model meaningless.
    def ids(values):
        text = "".join("\t".join(["0"] + [""] * 13 + [f"{value:x}"] * 26) + "\n" for value in values)
        return criteo.to_rows(parse(text.encode()), 1001).ids.reshape(26, -1)[0]

    assert ids([0, 1, 0x62770D79]).tolist() == [1, 790, 448]
    counts = np.bincount(ids(range(20000)), minlength=1001)
    assert counts[0] == 0
    assert counts[1:].min() > 0
    assert counts.max() < 60


def test_chunks_of_any_size_hold_whole_lines(tmp_path):
    lines = criteo_lines(20)
    path = write(tmp_path / "log.gz", lines)
    for chunk_bytes in (200, 1000, 10**6):
        chunks = list(criteo.read_lines(path, chunk_bytes))
        assert all(chunk.endswith(b"\n") for chunk in chunks)
        assert b"".join(chunks).decode().splitlines() == lines


def test_last_line_needs_no_newline(tmp_path):
    path = tmp_path / "log"
    path.write_text("\n".join(criteo_lines(10)))
    assert len(everything(open_log(tmp_path, path))) == 10


def test_malformed_lines_are_skipped_and_reported(tmp_path, caplog):
    lines = criteo_lines(1000)
    good = [line for i, line in enumerate(lines) if i not in (16, 40, 999)]
    lines[16] = lines[16].rpartition("\t")[0]
    lines[40] = "2" + lines[40][1:]
    lines[999] = lines[999] + "x"
    path = write(tmp_path / "log", lines)
    dataset = open_log(tmp_path, path)
    assert everything(dataset) == everything(open_log(tmp_path, write(tmp_path / "good", good)))
    assert "skipped 3 malformed of the 1000 lines" in caplog.text
    assert f"{path}, line 17: 39 fields instead of 40" in caplog.text
    assert f"{path}, line 41: label '2' is neither 0 nor 1" in caplog.text
    assert f"{path}, line 1000: field 40" in caplog.text
    caplog.clear()
    open_log(tmp_path, path)  # from the cache
    assert "skipped 3" in caplog.text


@pytest.mark.parametrize(("malformed", "stops"), [(2, False), (3, True)], ids=["one_percent", "more"])
def test_more_than_one_percent_malformed_stops(tmp_path, malformed, stops):
    # The bad lines come first and all in one file, yet all lines of all files count.
    write(tmp_path / "a", ["bad"] * malformed + criteo_lines(50 - malformed))
    write(tmp_path / "b", criteo_lines(150))
    if not stops:
        assert len(everything(open_log(tmp_path, f"{tmp_path}/[ab]"))) == 200 - malformed
        return
    with pytest.raises(InputError, match=r"criteo: 3 of the 200 lines of 2 files are malformed.*a, line 1: 1 fields"):
        open_log(tmp_path, f"{tmp_path}/[ab]")


def test_wrong_kind_of_file_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(criteo, "EARLY_LINES", 1000)
    monkeypatch.setattr(criteo, "read_lines", functools.partial(criteo.read_lines, chunk_bytes=10_000))
    write(tmp_path / "log", ["some text"] * 5000)
    with pytest.raises(InputError, match=r"1000 of the first 1000 lines of .*/log are malformed"):
        open_log(tmp_path, tmp_path / "log")
    assert not [path for path in (tmp_path / "cache").glob("*/*part*") if path.is_dir()]


def test_unreadable_files(tmp_path):
    (tmp_path / "torn.gz").write_bytes(gzip.compress(b"0\t" * 10**4)[:-20])
    (tmp_path / "plain.gz").write_bytes(b"0\t1\n")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "long").write_bytes(b"x" * (5 * criteo.CHUNK_BYTES))
    for name, sentence in {
        "torn.gz": "cannot read .*torn.gz",
        "plain.gz": "cannot read .*plain.gz",
        "empty": "empty hold no rows",
        "long": "long is not a click log",
        "absent_*": "no file matches .*absent_",
    }.items():
        with pytest.raises(InputError, match=sentence):
            open_log(tmp_path, tmp_path / name)


def test_one_row_tables_are_refused(tmp_path):
    with pytest.raises(InputError, match="tables of 1 rows"):
        open_log(tmp_path, write(tmp_path / "log", criteo_lines(5)), hash_rows=1)


def test_ranks_share_the_files_and_each_is_parsed_once(tmp_path, monkeypatch):
    lines = criteo_lines(120)
    for i in range(4):
        write(tmp_path / f"day_{i}", lines[i * 30 : (i + 1) * 30])
    parsed = []
    convert_file = criteo._convert_file

    def counted(file, part, hash_rows):
        parsed.append(file.name)
        convert_file(file, part, hash_rows)

    monkeypatch.setattr(criteo, "_convert_file", counted)
    with ThreadPoolExecutor(3) as ranks:
        futures = [ranks.submit(open_log, tmp_path, f"{tmp_path}/day_?", rank=rank) for rank in range(3)]
        rows = [everything(future.result()) for future in futures]
    assert sorted(parsed) == ["day_0", "day_1", "day_2", "day_3"]
    assert rows[0] == rows[1] == rows[2]
    assert len(rows[0]) == 120


def test_cache_follows_the_file(tmp_path):
    path = write(tmp_path / "log", criteo_lines(20))
    assert len(everything(open_log(tmp_path, path))) == 20
    write(path, criteo_lines(30, seed=1))
    assert len(everything(open_log(tmp_path, path))) == 30
