"""Schema of training data: which columns of a row are the sides of an example."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from unime_jax.batch import Example, Item
from unime_jax.data.images import MAX_PIXELS
from unime_jax.data.quarantine import BadExample
from unime_jax.data.row_items import Cells, is_given, list_of, read_item, text_of

Draw = Callable[[int], Sequence[int]]  # numbers of the negatives that are taken, of so many
MINED = "mined"  # column of a row that has `MinedNegatives`


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of an item: its text, its images' paths, and the content of their files.

    A file's content is bytes, or an `ImageFile` that has it. Paths and files are one value, or a
    list of several images, which the text places by `<|image_1|>`, `<|image_2|>` and so on.
    """

    text: str
    path: str
    image: str


@dataclasses.dataclass(frozen=True)
class Schema:
    """The columns of an example; any may be absent.

    Those of negatives hold a list of what an item has, or one value: a flat list of paths or files
    is one image for each negative, a list of lists several. `scores`: a judge's or a miner's scores
    of the positive and then of each negative. `score`: how alike query and positive are.
    """

    query: Columns
    positive: Columns
    negatives: Columns
    id: str = "id"
    scores: str = "scores"
    score: str = "score"


class MinedNegatives(Protocol):
    """Negatives of a row that stand in other rows, where they are read when they are drawn."""

    @property
    def scores(self) -> tuple[float, ...]:
        """Of the row's positive, then of each negative."""
        ...

    def check(self, query: Item, positive: Item) -> None:
        """Raises ValueError, which ends the run, if the row is not the one that was mined for."""

    def read(self, number: int, max_pixels: int) -> Item:
        """A negative. Raises ValueError, which ends the run, if it is not what was mined."""
        ...


MMEB = Schema(
    query=Columns("qry", "qry_image_path", "qry_image"),
    positive=Columns("pos_text", "pos_image_path", "pos_image"),
    negatives=Columns("neg_text", "neg_image_path", "neg_image"),
)


def check_names(wanted: Iterable[str], available: Iterable[str]) -> None:
    """Raises ValueError for configured sources that the dataset does not have."""
    available = sorted(available)
    unknown = [name for name in wanted if name not in available]
    if not unknown:
        return
    hints = []
    for name in unknown:
        near = difflib.get_close_matches(name, available, n=3)
        hints.append(f"{name!r}" + (f" (did you mean {', '.join(near)}?)" if near else ""))
    raise ValueError(f"no such source: {'; '.join(hints)}. The dataset has {', '.join(available)}")


def to_example(
    source: str,
    row: Mapping[str, Any],
    default_id: str = "",
    max_pixels: int = MAX_PIXELS,
    schema: Schema = MMEB,
    draw: Draw | None = None,
) -> Example:
    """The example of a row, its images still encoded; only their headers are read.

    A negative without text and image is none; those of column `MINED` come after the row's own,
    with their scores where the row has no others. `default_id` names a row without an id. An image
    without a path is named by its content, because the path is part of an item's key. `draw`
    chooses among the negatives, and only those are read; None: all.

    Raises:
      BadExample: no query or positive, text empty where there is no image, numbers of paths and
        images that differ, image bytes missing, an image whose headers say that it cannot be
        decoded or has more than `max_pixels`, text that is not UTF-8 or absurdly long, or scores
        that are not one for each candidate. Of several images it says which is bad.
    """
    id = text_of(row.get(schema.id)) or default_id

    def item(side: str, cells: Cells) -> Item:
        return read_item(cells, (source, id, side), max_pixels)

    query = item("query", _cells(row, schema.query))
    positive = item("positive", _positive(row, schema, source, id))
    mined: MinedNegatives | None = row.get(MINED)
    if mined is not None:
        mined.check(query, positive)
    given = _given_negatives(row, schema)
    # Numbered without those that are none, as where their images are decoded.
    kept = [cells for cells in given if is_given(cells)]
    own, count = len(kept), len(kept) + (len(mined.scores) - 1 if mined is not None else 0)
    drawn = tuple(range(count) if draw is None else draw(count))
    negatives = tuple(
        item(f"negative {number}", kept[number])
        if mined is None or number < own
        else mined.read(number - own, max_pixels)
        for number in drawn
    )
    try:
        scores = _scores(row.get(schema.scores), [is_given(cells) for cells in given])
    except (ValueError, TypeError) as error:
        raise BadExample(source, id, "", f"column {schema.scores}: {error}") from error
    if mined is not None and count > own:  # whose scores may be of another scale than the row's
        scores = () if own else mined.scores
    if scores:
        scores = (scores[0], *(scores[1 + number] for number in drawn))
    return Example(
        source,
        id,
        query,
        positive,
        negatives,
        scores,
        negative_numbers=drawn,
        undrawn_negatives=count - len(drawn),
        grade=_grade(row.get(schema.score)),
    )


def target_of(
    source: str,
    row: Mapping[str, Any],
    number: int,
    default_id: str = "",
    max_pixels: int = MAX_PIXELS,
    schema: Schema = MMEB,
) -> Item:
    """A row's positive (number 0) or a negative (1 and so on), without reading its other images.

    Raises:
      BadExample: as `to_example`.
    """
    id = text_of(row.get(schema.id)) or default_id
    if not number:
        return read_item(_positive(row, schema, source, id), (source, id, "positive"), max_pixels)
    kept = [cells for cells in _given_negatives(row, schema) if is_given(cells)]
    if number > len(kept):
        raise BadExample(source, id, "", f"there is no negative {number - 1} of {len(kept)}")
    return read_item(kept[number - 1], (source, id, f"negative {number - 1}"), max_pixels)


def _positive(row: Mapping[str, Any], schema: Schema, source: str, id: str) -> Cells:
    """The positive's cells; BadExample if they are empty."""
    cells, columns = _cells(row, schema.positive), schema.positive
    if not is_given(cells):
        reason = f"no positive: {columns.text} and {columns.path} are empty"
        raise BadExample(source, id, "", reason)
    return cells


def _given_negatives(row: Mapping[str, Any], schema: Schema) -> list[Cells]:
    """Cells of every place of the lists, also those without a negative."""
    lists = [list_of(cell) for cell in _cells(row, schema.negatives)]
    count = max(map(len, lists))
    filled = (values + [""] * (count - len(values)) for values in lists)
    return list(zip(*filled, strict=True))


def _cells(row: Mapping[str, Any], columns: Columns) -> Cells:
    return row.get(columns.text), row.get(columns.path), row.get(columns.image)


def _scores(cell: Any, kept: list[bool]) -> tuple[float, ...]:
    """Scores of the positive and the negatives that are kept; ValueError or TypeError if wrong."""
    if cell is None or not len(cell):
        return ()
    if len(cell) != 1 + len(kept):
        raise ValueError(f"{len(cell)} scores for a positive and {len(kept)} negatives")
    scores = tuple(float(score) for score, keep in zip(cell, [True, *kept], strict=True) if keep)
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"{scores}: a score is no finite number")
    return scores


def _grade(cell: Any) -> float | None:
    """A pair's grade; None: the cell has no finite number, which only graded sources need."""
    try:
        grade = float(cell)
    except (TypeError, ValueError):
        return None
    return grade if math.isfinite(grade) else None
