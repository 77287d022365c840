"""The item of a row's cells: its text, images and clips, checked by their headers."""

import hashlib
from typing import Any

from unime_jax.batch import Item, Media
from unime_jax.data import clips
from unime_jax.data.clip_files import ClipFile
from unime_jax.data.image_markers import without_markers
from unime_jax.data.images import ImageError, ImageFile, check
from unime_jax.data.quarantine import BadExample, MediaError, failed_path, place_of
from unime_jax.data.strange_texts import text_fault

# An item's text, the paths of its images and clips, and their files; clips are each a `ClipFile`.
Cells = tuple[Any, Any, Any]


def read_item(cells: Cells, where: tuple[str, str, str], max_pixels: int) -> Item:
    """The item of some cells; BadExample, which says source, id and side, if it cannot be used."""
    source, id, side = where
    text, paths, images = cells
    try:
        result = Item(text_of(text), _media(paths, images))
    except UnicodeDecodeError as error:
        raise BadExample(source, id, "", f"{side}: text is not UTF-8: {error}") from error
    except ValueError as error:
        path = error.path if isinstance(error, MediaError) else ""
        raise BadExample(source, id, path, f"{side}: {error}") from error
    try:
        _check(result, max_pixels)
    except ValueError as error:
        path = failed_path(result, error)
        raise BadExample(source, id, path, f"{side}: {error}") from error
    return result


def is_given(cells: Cells) -> bool:
    """Whether there is a text, a path or a file."""
    text, paths, images = cells
    files = (
        isinstance(image, ImageFile | ClipFile) or (image is not None and len(image))
        for image in _values(images)
    )
    return bool(text) or any(_values(paths)) or any(files)


def _media(paths: Any, images: Any) -> tuple[Media, ...]:
    """The images and clips of an item; ValueError for a place without one."""
    names = [*map(text_of, _values(paths))]
    given = [
        image if isinstance(image, ImageFile | ClipFile) else _bytes(image)
        for image in _values(images)
    ]
    if names and given and len(names) != len(given):
        raise ValueError(f"{len(names)} image paths, but {len(given)} images")
    count = max(len(names), len(given))
    kinds = ["clip" if isinstance(medium, ClipFile) else "image" for medium in given]
    kinds = kinds or ["image"] * count
    places = [f"{kind} {n + 1} of {count}" if count > 1 else kind for n, kind in enumerate(kinds)]
    contents = [_content(*medium) for medium in zip(given, places)]
    if not any(names) and not any(contents):
        return ()
    media = []
    for number, (name, content) in enumerate(
        zip(names or [""] * count, contents or [b""] * count, strict=True)
    ):
        if not name and not content:
            raise ValueError(
                f"{kinds[number]} {number + 1} of {count} is missing: there is no path and no bytes"
            )
        name = name or hashlib.sha256(content).hexdigest()
        media.append(Media(name, content or None, "clip" if kinds[number] == "clip" else "image"))
    return tuple(media)


def _check(item: Item, max_pixels: int) -> None:
    """Raises ValueError for an item that cannot be used; MediaError if one of its media is bad."""
    if fault := text_fault(item.text):
        raise ValueError(fault)
    for number, media in enumerate(item.media):
        place = place_of(item, number)
        if not media.data:
            reason = f"{place} is missing: there is a path but no bytes"
            raise MediaError(reason, media.path, place)
        try:
            if media.kind == "clip":
                clips.check(media.data, max_pixels=min(max_pixels, clips.MAX_PIXELS))
            else:
                check(media.data, max_pixels=max_pixels)
        except ImageError as error:
            reason = f"{place} cannot be decoded: {error}"
            raise MediaError(reason, media.path, place) from error
    if not item.media and not without_markers(item.text)[0].strip():
        raise ValueError("empty text and no image")


def text_of(value: Any) -> str:
    """A value as text; "" of None. UnicodeDecodeError for bytes that are not UTF-8."""
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)


def _bytes(value: Any) -> bytes:
    if value is None or isinstance(value, str) and not value:
        return b""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"an image is a {type(value).__name__}; it must be the bytes of a file")
    return bytes(value)


def _content(media: bytes | ImageFile | ClipFile, place: str) -> bytes:
    """The bytes of a file; MediaError if it cannot be read."""
    if isinstance(media, bytes):
        return media
    try:
        data = media.read()
    except FileNotFoundError as error:
        # A clip of several frames has no path of its own.
        named = f"{media.path!r} in {media.folders[-1]}" if media.path else repr(error.filename)
        reason = f"{place} is missing: there is no file {named}"
        raise MediaError(reason, media.path, place) from error
    except (OSError, ImageError) as error:
        raise MediaError(f"{place} cannot be read: {error}", media.path, place) from error
    if not data:
        raise MediaError(f"{place} cannot be decoded: the file is empty", media.path, place)
    return data


def list_of(cell: Any) -> list[Any]:
    """The values of a list's cell; of another value, that alone; of None, none."""
    if cell is None:
        return []
    single = isinstance(cell, str | bytes | bytearray | memoryview) or not hasattr(cell, "__iter__")
    return [cell] if single else list(cell)


def _values(cell: Any) -> list[Any]:
    """The values of a cell, which is a value or a list of some; a cell of "" or b"" has none."""
    return [] if isinstance(cell, str | bytes) and not cell else list_of(cell)
