"""Embedding tables and the features that look ids up in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dmt_kernels.spec.errors import InputError

Pooling = Literal["sum", "mean"]


@dataclass(frozen=True)
class Table:
    """One embedding table.

    Parameters
    ----------
    name : str
        Unique name; together with the seed it determines the initial weights.
    rows : int
        ``E``, the number of rows.
    dim : int
        ``D``, the width of a row.
    features : sequence of str
        The features that look ids up in this table, at least one. A feature belongs to one table.
    pooling : {"sum", "mean"}
        How the rows of a bag become one vector.

    Raises
    ------
    InputError
        For a table without a name, features, rows or columns, features that are no sequence of texts, or an unknown
        pooling.
    """

    name: str
    rows: int
    dim: int
    features: Sequence[str]
    pooling: Pooling = "sum"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"a table is named {self.name!r}; a name is a text that is not empty")
        if not all(isinstance(extent, int) for extent in (self.rows, self.dim)):
            raise InputError(f"table {self.name!r} has {self.rows!r} rows of width {self.dim!r}; both must be integers")
        # A text would be a feature of every letter, and a set has another order on every rank.
        if isinstance(self.features, str) or not isinstance(self.features, Sequence):
            raise InputError(f"features of table {self.name!r} are {self.features!r}; give a sequence of names")
        if not all(isinstance(feature, str) for feature in self.features):
            raise InputError(f"features of table {self.name!r} are {self.features!r}; names are texts")
        object.__setattr__(self, "features", tuple(self.features))  # a plan looks tables up, so they have to hash
        if not self.features:
            raise InputError(f"table {self.name!r} has no feature")
        if self.rows < 1 or self.dim < 1:
            raise InputError(f"table {self.name!r} has {self.rows} rows of width {self.dim}; both must be at least 1")
        if self.pooling not in ("sum", "mean"):
            raise InputError(f"table {self.name!r} has pooling {self.pooling!r}; choose 'sum' or 'mean'")


def tables_by_feature(tables: Sequence[Table]) -> dict[str, Table]:
    """Map each feature's name to its table.

    Raises
    ------
    InputError
        If two tables share a name or two tables claim one feature.
    """
    owners: dict[str, Table] = {}
    names: set[str] = set()
    for table in tables:
        if table.name in names:
            raise InputError(f"two tables are named {table.name!r}")
        names.add(table.name)
        for feature in table.features:
            if feature in owners:
                raise InputError(
                    f"feature {feature!r} belongs to two tables, {owners[feature].name!r} and {table.name!r}"
                )
            owners[feature] = table
    return owners
