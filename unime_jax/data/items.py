"""Deduplicated items of a corpus, indexed once, read lazily."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from unime_jax import files
from unime_jax.batch import Item
from unime_jax.data.ahead import THREADS, map_ahead
from unime_jax.data.embedding_store import item_id, read_lines
from unime_jax.data.formats import Source
from unime_jax.data.quarantine import BadExample, BadItem
from unime_jax.data.schema import to_example
from unime_jax.data.settings import Side
from unime_jax.data.strange_texts import text_fault

ROWS = 64  # that a thread reads at a time


class Corpus(Protocol):
    """Rows that hold items."""

    @property
    def name(self) -> str:
        """What a bad row is listed under."""
        ...

    def __len__(self) -> int: ...

    def read(self, row: int) -> Sequence[Item]:
        """The items of a row. Raises BadExample if it cannot be used."""
        ...


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Rows in MMEB-train's columns; what training would leave out is left out whole here, too."""

    name: str
    rows: Source
    sides: tuple[Side, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Sequence[Item]:
        example = to_example(self.name, self.rows[row], str(row))
        of = {
            "query": (example.query,),
            "positive": (example.positive,),
            "negatives": example.negatives,
        }
        return [item for side in self.sides for item in of[side]]


@dataclasses.dataclass(frozen=True)
class Lines:
    """A text a line."""

    name: str
    lines: Sequence[str]

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, row: int) -> Sequence[Item]:
        if not self.lines[row].strip():
            raise BadExample(self.name, str(row), "", "empty line")
        if fault := text_fault(self.lines[row]):
            raise BadExample(self.name, str(row), "", fault)
        return [Item(self.lines[row])]


def check_file(file: files.Path) -> None:
    """Raises ValueError if there is no such file, or it cannot be read."""
    try:
        file.open("rb").close()
    except OSError as error:
        raise ValueError(f"{file} is no text file that can be read: {error}") from error


def open_lines(file: files.Path) -> Lines:
    """ValueError if it cannot be read, or is not UTF-8."""
    try:
        return Lines(str(file), read_lines(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no text file that can be read: {error}") from error


class Items:
    """Distinct items of corpora, in the order of their first rows; `items[i]` reads an item.

    All rows are read when this is made, and the headers of their images; only ids are kept. An
    image whose pixels are damaged shows where it is decoded.

    Attributes:
      ids: bytes [n], `embeddings.item_id` of each.
      places: int32 [n, 3], the first place of each: number of the corpus, row, number in the row.
      read: rows looked at.
      bad: rows that cannot be used.
      occurrences: int32 [m, 4], all places in order, and the number of the item that is there.
    """

    def __init__(self, corpora: Sequence[Corpus]):
        self._corpora = corpora
        self.read = sum(map(len, corpora))
        self.bad: list[BadItem] = []
        ids: list[bytes] = []
        places: list[tuple[int, int, int]] = []
        pieces = (
            (number, range(start, min(start + ROWS, len(corpus))))
            for number, corpus in enumerate(corpora)
            for start in range(0, len(corpus), ROWS)
        )
        for piece_ids, piece_places, piece_bad in map_ahead(self._scan, pieces, ahead=2 * THREADS):
            ids += piece_ids
            places += piece_places
            self.bad += piece_bad
        distinct, first, which = np.unique(
            np.array(ids, "S32"), return_index=True, return_inverse=True
        )
        order = np.argsort(first)
        self.ids = distinct[order]
        every = np.array(places, np.int32).reshape(-1, 3)
        self.places = every[first[order]]
        number = np.empty(len(order), np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        self.occurrences = np.column_stack([every, number[which.reshape(-1)]])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        corpus, row, side = self.places[index]
        return self._corpora[corpus].read(int(row))[side]

    def blame(self, index: int, path: str, reason: str) -> BadItem:
        """An item that cannot be used, by where it is from; `path`: of the image it failed on."""
        corpus, row, _ = self.places[index]
        return BadItem(self._corpora[corpus].name, str(row), path, reason)

    def _scan(
        self, piece: tuple[int, range]
    ) -> tuple[list[bytes], list[tuple[int, int, int]], list[BadItem]]:
        """Ids and places (corpus, row, number in it) of a piece's items, and its bad rows."""
        number, rows = piece
        ids: list[bytes] = []
        places: list[tuple[int, int, int]] = []
        bad: list[BadItem] = []
        for row in rows:
            try:
                items = self._corpora[number].read(row)
            except BadExample as error:
                bad.append(error.item)
                continue
            ids += map(item_id, items)
            places += [(number, row, side) for side in range(len(items))]
        return ids, places, bad
