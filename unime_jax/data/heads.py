"""Heads of sources: the first rows of each, as published recipes cut MMEB-train."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unime_jax.data.formats import Source
from unime_jax.data.schema import check_names


@dataclasses.dataclass(frozen=True)
class Head:
    """The first `count` rows of a source; the others are never read."""

    rows: Source
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if not -self.count <= index < self.count:
            raise IndexError(f"row {index} of {self.count}")
        return self.rows[index % self.count]


def heads(
    sources: Mapping[str, Source], first_rows: int, by_source: Mapping[str, int]
) -> dict[str, Source]:
    """Sources without the rows beyond the first; 0: all of them are used.

    Args:
      first_rows: of every source that `by_source` does not name.
      by_source: of single sources.

    Raises:
      ValueError: `by_source` names a source that there is not.
    """
    try:
        check_names(by_source, sources)
    except ValueError as error:
        raise ValueError(f"config.data.first_rows_by_source: {error}") from error
    cut: dict[str, Source] = {}
    for name, rows in sources.items():
        count = by_source.get(name, first_rows)
        cut[name] = Head(rows, count) if 0 < count < len(rows) else rows
    return cut
