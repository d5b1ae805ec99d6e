"""What a table may be."""

import pytest

from dmt_kernels.spec import InputError, Table


def test_features_are_any_sequence_of_names_but_no_text() -> None:
    assert Table("t", 5, 2, ["user", "item"]) == Table("t", 5, 2, ("user", "item"))
    assert hash(Table("t", 5, 2, ["user"])) == hash(Table("t", 5, 2, ("user",)))
    with pytest.raises(InputError, match="features of table 't' are 'user'; give a sequence of names"):
        Table("t", 5, 2, "user")
    for wrong in (None, {"user"}, 5):
        with pytest.raises(InputError, match="give a sequence of names"):
            Table("t", 5, 2, wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names are texts"):
        Table("t", 5, 2, [["user"]])  # type: ignore[list-item]
