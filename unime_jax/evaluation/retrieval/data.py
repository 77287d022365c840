"""Data of a retrieval set, as pairs or as a judged corpus: items by row, and what is relevant."""

import dataclasses
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from unime_jax import files
from unime_jax.batch import Example, Item, Media
from unime_jax.data.formats import Source
from unime_jax.data.images import ImageFile
from unime_jax.data.schema import MMEB
from unime_jax.evaluation.encoding.item_table import Images, ItemTable
from unime_jax.evaluation.retrieval.corpus_ranking import Judgements, judgements_of
from unime_jax.evaluation.retrieval.rows import ITEMS, example_of, image_files_of, text_cell

PLACE = "retrieval://"  # begins the paths of images that lie in rows: no path of a file does
NAMED = 5  # ids that an error names
TEXT = "{text}"  # stands for the text of a query or document in the words around it


class RetrievalData(Protocol):
    """A set whose rows are read when they are asked for."""

    @property
    def name(self) -> str: ...

    def items(self, row: int) -> Sequence[Item]:
        """The items of a row, with the content of their images.

        Raises:
          ValueError: it cannot be used; the message names set and row.
        """

    def where(self, row: int) -> str:
        """The set and the row, for errors."""

    def image_files(self, limit: int) -> Iterator[ImageFile]:
        """The files that rows name their images by, none of which is read; see `judgements`."""

    def judgements(self, table: ItemTable, limit: int) -> tuple[Sequence[str], Judgements, int]:
        """Adds all items to `table`: ids of the queries, judgements, and queries left out.

        Left out are queries without a relevant target. `limit`: the first rows or queries; 0: all.

        Raises:
          ValueError: a row that cannot be used, or nothing to rank.
        """


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Rows in MMEB-train's columns: all their targets, negatives too, are the corpus.

    Items of the same text and image content are one item, so that equal queries are one query with
    all their positives. An image is the content of its column, or a file at its path.
    """

    name: str
    rows: Source
    folder: files.Path  # that paths are relative to

    def items(self, row: int) -> tuple[Item, ...]:
        """The query, the positive, and the negatives."""
        example = self._example(row)
        return example.query, example.positive, *example.negatives

    def where(self, row: int) -> str:
        return f"{self}, row {row}"

    def image_files(self, limit: int) -> Iterator[ImageFile]:
        numbers = range(min(limit or len(self.rows), len(self.rows)))
        return image_files_of(self.rows, numbers, self.folder, MMEB)

    def judgements(self, table: ItemTable, limit: int) -> tuple[Sequence[str], Judgements, int]:
        count = min(limit or len(self.rows), len(self.rows))
        if not count:
            raise ValueError(f"{self} has no rows; leave it out or fetch its data again")
        numbering = _Numbering(self.name, table)
        ids: dict[int, str] = {}  # by item of the query
        relevant: dict[int, dict[int, float]] = {}  # items and grades by item of the query
        candidates: dict[int, int] = {}  # places in the corpus by item
        for row in range(count):
            example = self._example(row)
            sides = (example.query, example.positive, *example.negatives)
            query, positive, *negatives = (
                numbering.add(item, row, side) for side, item in enumerate(sides)
            )
            ids.setdefault(query, example.id)
            relevant.setdefault(query, {})[positive] = 1.0
            for target in (positive, *negatives):
                candidates.setdefault(target, len(candidates))
        judged = judgements_of(
            list(relevant),
            list(candidates),
            [{candidates[item]: 1.0 for item in own} for own in relevant.values()],
        )
        return list(ids.values()), judged, 0

    def _example(self, row: int) -> Example:
        return example_of(self.where(row), self.rows, row, self.folder, MMEB)

    def __str__(self) -> str:
        return f"retrieval set {self.name!r}"


@dataclasses.dataclass(frozen=True)
class Judged:
    """Queries, a corpus and judgements, as in BEIR; rows are those of the queries, then the corpus.

    An item has `_id` or `id`, `text` (after `title`, where there is one) and `image`: the content
    of a file, its path, or a list of several. A judgement has `query-id`, `corpus-id` and `score`,
    whose sign says whether it is relevant; without a score it is. `query_text` and `target_text`
    are the words of a protocol, in which `{text}` stands for the text of a query or document.
    """

    name: str
    queries: Source
    corpus: Source
    qrels: Source
    folder: files.Path  # that paths are relative to
    query_text: str = TEXT
    target_text: str = TEXT

    def items(self, row: int) -> tuple[Item, ...]:
        """The query or the document, in the words of the protocol."""
        part, number = self._part(row)
        rows, words = self.corpus, self.target_text
        if part == "queries":
            rows, words = self.queries, self.query_text
        item = example_of(self.where(row), rows, number, self.folder, ITEMS).query
        if item.text and TEXT not in words:
            raise ValueError(f"{self.where(row)}: its text has no place in the words {words!r}")
        return (dataclasses.replace(item, text=words.replace(TEXT, item.text)),)

    def where(self, row: int) -> str:
        part, number = self._part(row)
        return f"{self}, {part} row {number}"

    def image_files(self, limit: int) -> Iterator[ImageFile]:
        for rows in (self.queries, self.corpus):
            yield from image_files_of(rows, range(len(rows)), self.folder, ITEMS)

    def judgements(self, table: ItemTable, limit: int) -> tuple[Sequence[str], Judgements, int]:
        queries = self._ids("queries", self.queries)
        corpus = self._ids("corpus", self.corpus)
        grades = self._grades(queries, corpus)
        asked = list(queries)[: limit or len(queries)]
        ids = [id for id in asked if grades.get(id)]
        if not ids:
            raise ValueError(
                f"{self}: none of {len(asked)} queries has a relevant target in qrels; a score "
                "above 0 says relevant"
            )
        numbering = _Numbering(self.name, table)
        query = [numbering.add(self.items(queries[id])[0], queries[id], 0) for id in ids]
        rows = range(len(self.queries), len(self.queries) + len(self.corpus))
        candidates = [numbering.add(self.items(row)[0], row, 0) for row in rows]
        judged = judgements_of(query, candidates, [grades[id] for id in ids])
        return ids, judged, len(asked) - len(ids)

    def _ids(self, part: str, rows: Source) -> dict[str, int]:
        """Row numbers by id, in order."""
        if not len(rows):
            raise ValueError(f"{self}: {part} has no rows")
        numbers: dict[str, int] = {}
        for number in range(len(rows)):
            id = text_cell(rows[number], "_id", "id")
            if not id:
                raise ValueError(f"{self}, {part} row {number}: no id; a row has _id or id")
            if numbers.setdefault(id, number) != number:
                raise ValueError(
                    f"{self}, {part} row {number}: the id {id!r} is that of row {numbers[id]}, too"
                )
        return numbers

    def _grades(
        self, queries: Mapping[str, int], corpus: Mapping[str, int]
    ) -> dict[str, dict[int, float]]:
        """Grades above 0 by query id and place in the corpus."""
        grades: dict[str, dict[int, float]] = {}
        unknown: dict[str, dict[str, None]] = {"queries": {}, "corpus": {}}
        for number in range(len(self.qrels)):
            row, where = self.qrels[number], f"{self}, qrels row {number}"
            query = text_cell(row, "query-id", "query_id")
            document = text_cell(row, "corpus-id", "corpus_id")
            if not query or not document:
                raise ValueError(
                    f"{where}: no query-id or corpus-id; it has the columns {', '.join(row)}"
                )
            grade = _grade(row, where)
            if query not in queries:
                unknown["queries"][query] = None
            elif document not in corpus:
                unknown["corpus"][document] = None
            elif (earlier := grades.setdefault(query, {})).setdefault(
                corpus[document], grade
            ) != grade:
                raise ValueError(
                    f"{where}: {query!r} and {document!r} are judged twice, "
                    f"{earlier[corpus[document]]:g} and {grade:g}"
                )
        said = [
            f"{len(ids)} ids that {part} has not: {', '.join(map(repr, list(ids)[:NAMED]))}"
            + (", ..." if len(ids) > NAMED else "")
            for part, ids in unknown.items()
            if ids
        ]
        if said:
            raise ValueError(f"{self}: qrels names {'; and '.join(said)}")
        return {
            query: {place: grade for place, grade in own.items() if grade > 0}
            for query, own in grades.items()
        }

    def _part(self, row: int) -> tuple[str, int]:
        count = len(self.queries)
        return ("queries", row) if row < count else ("corpus", row - count)

    def __str__(self) -> str:
        return f"retrieval set {self.name!r}"


def images_of(sets: Mapping[str, RetrievalData]) -> Images:
    """Encoded bytes of the images in rows, by the path of `_Numbering`; a row is read anew."""

    def read(path: str) -> bytes:
        name, row, item, image, _ = path.removeprefix(PLACE).split("/", 4)
        media = sets[urllib.parse.unquote(name)].items(int(row))[int(item)].media
        return media[int(image)].data or b""

    return read


class _Numbering:
    """Numbers of a table's items by text and image content.

    The path of an image in the table says where it was met first: set, row, item of the row and
    image of the item, with the path that the row gives.
    """

    def __init__(self, name: str, table: ItemTable):
        self._name, self._table = urllib.parse.quote(name, safe=""), table
        self._numbers: dict[tuple[str, str], int] = {}

    def add(self, item: Item, row: int, number: int) -> int:
        known = self._numbers.get(item.identity)
        if known is None:
            start = f"{PLACE}{self._name}/{row}/{number}"
            media = tuple(
                Media(f"{start}/{place}/{_on_one(each.path)}", kind=each.kind)
                for place, each in enumerate(item.media)
            )
            key = Item(item.text, media).key
            known = self._numbers[item.identity] = self._table.add(key, row)
        return known


def _on_one(path: str) -> str:
    """A path without NUL, which divides the paths of an item."""
    return path.replace("\0", "?")


def _grade(row: Mapping[str, Any], where: str) -> float:
    said = text_cell(row, "score")
    try:
        grade = float(said or 1)
    except ValueError as error:
        raise ValueError(f"{where}: the score {said!r} is no number") from error
    if not np.isfinite(grade):
        raise ValueError(f"{where}: the score {said!r} is not finite")
    return grade
