"""Schema of training data: which columns of a row are the sides of an example."""

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from unime_jax.batch import Example, Item
from unime_jax.data.images import MAX_PIXELS, ImageError, check
from unime_jax.data.quarantine import BadExample
from unime_jax.data.strange_texts import text_fault

IMAGE_MARKER = "<|image_1|>"


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of an item: its text, its image's path, and the image file's bytes."""

    text: str
    path: str
    image: str


@dataclasses.dataclass(frozen=True)
class Schema:
    """The columns of an example. Those of negatives hold lists, or one value; any may be absent.

    `scores`: a judge's or a miner's scores of the positive and then of each negative.
    """

    query: Columns
    positive: Columns
    negatives: Columns
    id: str = "id"
    scores: str = "scores"


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
) -> Example:
    """The example of a row, its images still encoded; only their headers are read.

    A negative without text and image is none. `default_id` names a row without an id. An image
    without a path is named by its content, because the path is part of an item's key.

    Raises:
      BadExample: no query or positive, text empty where there is no image, image bytes missing, an
        image whose headers say that it cannot be decoded or has more than `max_pixels`, text that
        is not UTF-8 or absurdly long, or scores that are not one for each candidate.
    """
    id = _text(row.get(schema.id)) or default_id

    def item(side: str, text: Any, path: Any, image: Any) -> Item:
        try:
            name = _text(path) or (hashlib.sha256(image).hexdigest() if image else "")
            result = Item(_text(text), name, bytes(image) if image else None)
        except UnicodeDecodeError as error:
            raise BadExample(source, id, "", f"{side}: text is not UTF-8: {error}") from error
        reason = _fault(result, max_pixels)
        if reason:
            raise BadExample(source, id, result.image_path, f"{side}: {reason}")
        return result

    query = item("query", *_cells(row, schema.query))
    positive = _cells(row, schema.positive)
    if not any(positive):
        columns = schema.positive
        reason = f"no positive: {columns.text} and {columns.path} are empty"
        raise BadExample(source, id, "", reason)
    lists = [_list(cell) for cell in _cells(row, schema.negatives)]
    count = max(map(len, lists))
    filled = (values + [""] * (count - len(values)) for values in lists)
    given = list(zip(*filled, strict=True))
    # Numbered without those that are none, as where their images are decoded.
    kept = [cells for cells in given if any(cells)]
    negatives = tuple(item(f"negative {number}", *cells) for number, cells in enumerate(kept))
    try:
        scores = _scores(row.get(schema.scores), [any(cells) for cells in given])
    except (ValueError, TypeError) as error:
        raise BadExample(source, id, "", f"column {schema.scores}: {error}") from error
    return Example(source, id, query, item("positive", *positive), negatives, scores)


def _cells(row: Mapping[str, Any], columns: Columns) -> tuple[Any, Any, Any]:
    return row.get(columns.text), row.get(columns.path), row.get(columns.image)


def _scores(cell: Any, kept: list[bool]) -> tuple[float, ...]:
    """Scores of the positive and the negatives that are kept; ValueError or TypeError if wrong."""
    if cell is None or not len(cell):
        return ()
    if len(cell) != 1 + len(kept):
        raise ValueError(f"{len(cell)} scores for a positive and {len(kept)} negatives")
    return tuple(float(score) for score, keep in zip(cell, [True, *kept], strict=True) if keep)


def _fault(item: Item, max_pixels: int) -> str:
    if fault := text_fault(item.text):
        return fault
    if item.image_path and not item.image:
        return "image is missing: there is a path but no bytes"
    if item.image:
        try:
            check(item.image, max_pixels=max_pixels)
        except ImageError as error:
            return f"image cannot be decoded: {error}"
    elif not item.text.replace(IMAGE_MARKER, "").strip():
        return "empty text and no image"
    return ""


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)


def _list(column: Any) -> list[Any]:
    if column is None:
        return []
    return [column] if isinstance(column, str | bytes) else list(column)
