"""Which features form which tower."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmt_kernels.spec.errors import InputError
from dmt_kernels.spec.tables import Table, tables_by_feature


@dataclass(frozen=True)
class Partition:
    """Feature names of every tower, in the order in which the model sees them.

    Parameters
    ----------
    towers : tuple of tuple of str
        ``towers[t]`` names the features of tower ``t``.
    importance : mapping of str to float, optional
        What every feature is worth to a model, in any one unit: towers share their columns out by it.
    """

    towers: tuple[tuple[str, ...], ...]
    importance: Mapping[str, float] | None = field(default=None, hash=False)

    @property
    def features(self) -> tuple[str, ...]:
        """All features, tower by tower: the canonical feature order of a model."""
        return tuple(feature for tower in self.towers for feature in tower)

    def check(self, tables: Sequence[Table]) -> None:
        """Check that the partition covers the tables' features once, splits no shared table and weighs all or none.

        Raises
        ------
        InputError
            Naming the feature, tower or table that is wrong.
        """
        owners = tables_by_feature(tables)
        seen: dict[str, int] = {}
        for t, tower in enumerate(self.towers):
            if not tower:
                raise InputError(f"tower {t} has no feature")
            for feature in tower:
                if feature not in owners:
                    raise InputError(f"tower {t} names feature {feature!r}, which no table has")
                if feature in seen:
                    raise InputError(f"feature {feature!r} is in tower {seen[feature]} and in tower {t}")
                seen[feature] = t
        for feature, table in owners.items():
            if feature not in seen:
                raise InputError(f"feature {feature!r} is in no tower")
            if seen[feature] != seen[table.features[0]]:
                raise InputError(f"table {table.name!r} is shared by features of different towers")
            if self.importance is not None and feature not in self.importance:
                raise InputError(f"feature {feature!r} has no importance; all or none need one")

    def layout(self) -> dict[str, Any]:
        """As JSON has it: ``{"towers": [[feature, ...], ...], "importance": {feature: number, ...}}``."""
        return {"towers": self.towers} | ({} if self.importance is None else {"importance": dict(self.importance)})

    def save(self, path: Path) -> None:
        """Write :meth:`layout`."""
        path.write_text(json.dumps(self.layout(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Partition":
        """Read what :meth:`save` wrote, with or without importance.

        Raises
        ------
        InputError
            If the file is missing, cannot be read or is not of that form.
        """
        try:
            layout = json.loads(path.read_text())
            towers, importance = layout["towers"], layout.get("importance")
            if not all(isinstance(feature, str) for tower in towers for feature in tower):
                raise TypeError
            if importance is not None:
                importance = {feature: float(value) for feature, value in importance.items()}
                if not all(map(math.isfinite, importance.values())):
                    raise TypeError
        except FileNotFoundError:
            raise InputError(f"partition file {path} does not exist") from None
        except OSError as error:
            raise InputError(f"partition file {path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise InputError(
                f'partition file {path} is not of the form {{"towers": [["feature", ...], ...]}}, perhaps with '
                '"importance": {"feature": number, ...}'
            ) from None
        return cls(tuple(tuple(tower) for tower in towers), importance)
