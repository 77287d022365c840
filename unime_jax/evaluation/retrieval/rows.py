"""Rows of retrieval data as examples: pairs, or single items of a judged corpus, with media."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from unime_jax import files
from unime_jax.batch import Example
from unime_jax.data import media_cells
from unime_jax.data.clip_files import ClipFile
from unime_jax.data.formats import Source
from unime_jax.data.images import ImageFile, read_below
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import Columns, Schema, to_example
from unime_jax.evaluation.encoding.item_table import text_of

ITEM = Columns("text", "image_path", "image")
ITEMS = Schema(query=ITEM, positive=ITEM, negatives=Columns("", "", ""))


def example_of(
    where: str, rows: Source, number: int, folder: files.Path, schema: Schema
) -> Example:
    """The example of a row whose images may be files at their paths."""
    try:
        row = dict(rows[number])
    except BadExample as error:
        raise ValueError(f"{where}: {error.item.reason}") from error
    if schema is ITEMS:
        row = _item_columns(row, where, folder)
    for columns in (schema.query, schema.positive, schema.negatives):
        paths, content = row.get(columns.path), row.get(columns.image)
        if _is_filled(paths) and not _is_filled(content):
            try:
                row[columns.image] = _read(paths, folder)
            except OSError as error:
                reason = f"{error.filename} cannot be read: {error.strerror or error}"
                raise ValueError(f"{where}: {columns.path}: {reason}") from error
            except ValueError as error:
                raise ValueError(f"{where}: {columns.path}: {error}") from error
    try:
        return to_example("", row, str(number), schema=schema)
    except BadExample as error:
        image = f"image {error.item.path!r}: " if error.item.path else ""
        reason = error.item.reason.removeprefix("query: " if schema is ITEMS else "")
        raise ValueError(f"{where}: {image}{reason}") from error


def image_files_of(
    rows: Source, numbers: Iterable[int], folder: files.Path, schema: Schema
) -> Iterator[ImageFile]:
    """The files that rows name their images by, which are not read; unusable rows are passed over.

    See `example_of`.
    """
    for number in numbers:
        try:
            row = rows[number]
            row = _item_columns(row, "", folder) if schema is ITEMS else row
        except ValueError:
            continue
        for columns in (schema.query, schema.positive, schema.negatives):
            content = row.get(columns.image)
            if _is_filled(content):
                for cell in _flat(content):
                    if isinstance(cell, ImageFile):
                        yield cell
                    elif isinstance(cell, ClipFile):
                        yield from cell.files()
            else:
                paths = filter(None, map(text_of, _flat(row.get(columns.path))))
                yield from (ImageFile((str(folder),), path) for path in paths)


def _item_columns(row: Mapping[str, Any], where: str, folder: files.Path) -> dict[str, Any]:
    """The columns of `ITEM`, of a row of queries or corpus; clips come after images."""
    text = " ".join(part for part in (text_cell(row, "title"), text_cell(row, "text")) if part)
    images = [_content(image) for image in _list(row.get("image"))]
    paths = [image for image in images if isinstance(image, str)]
    content = [image for image in images if not isinstance(image, str)]
    if paths and content:
        raise ValueError(f"{where}: image has paths and contents of files; give one of them")
    media = [
        media_cells.medium((str(folder),), row, where, "clip", clip)
        for clip in _list(row.get("video"))
    ]
    if media:
        content = [ImageFile((str(folder),), path) for path in paths] or content
        paths = [*(paths or [""] * len(content)), *(medium.path for medium in media)]
        content = [*content, *(medium.content for medium in media)]
    return {"text": text, "image_path": paths, "image": content}


def _read(paths: Any, folder: files.Path) -> Any:
    """Contents of files in the structure of their paths, b"" where there is none."""
    if paths is None or isinstance(paths, str | bytes):
        path = text_of(paths)
        return read_below(folder, path) if path else b""
    return [_read(inner, folder) for inner in paths]


def _is_filled(cell: Any) -> bool:
    """Whether any value of a cell, or of the lists in it, is neither None nor empty text."""
    if cell is None or isinstance(cell, str | bytes | bytearray | memoryview):
        return bool(cell)
    return not isinstance(cell, Iterable) or any(map(_is_filled, cell))


def _flat(cell: Any) -> Iterator[Any]:
    """The values of a cell and of the lists in it."""
    single = isinstance(cell, str | bytes | bytearray | memoryview | ImageFile)
    if cell is None or single or not isinstance(cell, Iterable):
        yield cell
        return
    for inner in cell:
        yield from _flat(inner)


def _list(cell: Any) -> list[Any]:
    if not _is_filled(cell):
        return []
    single = isinstance(cell, str | bytes | bytearray | memoryview | Mapping)
    return [cell] if single else list(cell)


def _content(image: Any) -> Any:
    """The content or path of an image, which Hugging Face's datasets have by these names."""
    return (image.get("bytes") or image.get("path")) if isinstance(image, Mapping) else image


def text_cell(row: Mapping[str, Any], *names: str) -> str:
    """The text of the first of these columns that is filled; "" if none is."""
    return next((t for name in names if (t := text_of(row.get(name)))), "")
