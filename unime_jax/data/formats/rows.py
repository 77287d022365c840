"""What every format gives: random access to rows, their columns, and shards as one source."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from unime_jax.data.quarantine import BadExample

SAMPLE = 100  # first rows whose keys are a source's columns, where no schema names them


class Source(Protocol):
    """Random access to rows, by column; a list of dicts will do. Images are encoded files."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Rows(Source, Protocol):
    """A source that knows its columns; picklable, and safe to read from several threads.

    An index raises BadExample for a row that cannot be read.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """Names in the file's order; of a format without a schema, of the first `SAMPLE` rows."""
        ...

    @property
    def has_schema(self) -> bool:
        """Whether there are no columns but `columns`."""
        ...

    @property
    def is_nested(self) -> bool:
        """Whether cells may be lists and objects; if not, all are texts."""
        ...

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders that paths of images are below; none: they are columns of the row."""
        ...

    def row_id(self, index: int) -> str:
        """Where a row stands, for a row without an id; "": its number says it."""
        ...

    def only(self, columns: Sequence[str]) -> "Rows":
        """The same rows, whose other columns need not be read."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """The rows of several files in turn. An id without the file's name would not do."""

    parts: tuple[Rows, ...]
    names: tuple[str, ...]  # of the files

    def __post_init__(self) -> None:
        ends = np.cumsum([len(part) for part in self.parts])
        object.__setattr__(self, "_ends", ends)

    def __len__(self) -> int:
        return int(self._ends[-1])  # type: ignore[attr-defined]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        part, row = self._place(index)
        return self.parts[part][row]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.columns))

    @property
    def has_schema(self) -> bool:
        return all(part.has_schema for part in self.parts)

    @property
    def is_nested(self) -> bool:
        return self.parts[0].is_nested

    @property
    def folders(self) -> tuple[str, ...]:
        return self.parts[0].folders

    def row_id(self, index: int) -> str:
        part, row = self._place(index)
        return f"{self.names[part]} {self.parts[part].row_id(row) or f'row {row}'}"

    def only(self, columns: Sequence[str]) -> "Shards":
        return Shards(tuple(part.only(columns) for part in self.parts), self.names)

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the file, and of the row in it."""
        index = checked(index, len(self))
        ends: np.ndarray = self._ends  # type: ignore[attr-defined]
        part = int(np.searchsorted(ends, index, side="right"))
        return part, index - int(ends[part - 1] if part else 0)


def checked(index: int, count: int) -> int:
    """The index, counted from the front. Raises IndexError if there is no such row."""
    if not -count <= index < count:
        raise IndexError(f"row {index} of {count}")
    return int(index) % count


def keys_of_first(source: Source) -> tuple[str, ...]:
    """Keys of the first `SAMPLE` rows, in order. Raises BadExample if all of those are bad."""
    names: dict[str, None] = {}
    errors = []
    count = min(len(source), SAMPLE)
    for index in range(count):
        try:
            names |= dict.fromkeys(source[index])
        except BadExample as error:
            errors.append(error)
    if errors and len(errors) == count:
        raise errors[0]
    return tuple(names)
