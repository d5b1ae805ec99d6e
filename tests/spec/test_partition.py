"""Partitions survive the trip through a file."""

from pathlib import Path

import pytest

from dmt_kernels.spec import InputError, Partition, Table, derive_seed


def test_json_round_trip(tmp_path: Path) -> None:
    partition = Partition((("a", "b"), ("c",)))
    partition.save(tmp_path / "towers.json")
    assert Partition.load(tmp_path / "towers.json") == partition
    assert partition.features == ("a", "b", "c")


def test_importance_goes_with_towers_and_is_of_all_features_or_none(tmp_path: Path) -> None:
    partition = Partition((("a", "b"), ("c",)), {"a": 0.1, "b": -1e-3, "c": 2.0})
    partition.save(tmp_path / "towers.json")
    assert Partition.load(tmp_path / "towers.json") == partition
    tables = [Table(name, 5, 2, (name,)) for name in "abc"]
    partition.check(tables)
    with pytest.raises(InputError, match="feature 'b' has no importance; all or none need one"):
        Partition(partition.towers, {"a": 0.1, "c": 2.0}).check(tables)


NUMBERLESS = [
    f'{{"towers": [["a"]], "importance": {value}}}'
    for value in ("[1]", '{"a": "much"}', '{"a": NaN}', f'{{"a": {10**400}}}')
]


@pytest.mark.parametrize("text", ["", "[]", '{"towers": [[1]]}', '{"towers": 3}', *NUMBERLESS])
def test_what_is_no_partition_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "towers.json"
    path.write_text(text)
    with pytest.raises(InputError, match="towers.json is not of the form"):
        Partition.load(path)
    with pytest.raises(InputError, match=r"missing\.json does not exist"):
        Partition.load(tmp_path / "missing.json")


def test_seeds_differ_by_name_and_repeat() -> None:
    seeds = {derive_seed(0, "table", "a"), derive_seed(0, "table", "b"), derive_seed(1, "table", "a"), derive_seed(0)}
    assert len(seeds) == 4
    assert derive_seed(0, "table", "a") in seeds
    assert all(0 <= seed < 2**63 for seed in seeds)
