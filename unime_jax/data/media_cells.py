"""Images and clips in cells of training pairs: paths, bytes, base64, or dicts of these."""

import base64
import binascii
import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unime_jax.batch import MediaKind
from unime_jax.data.clip_files import ClipFile, is_video_name
from unime_jax.data.images import ImageFile

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{32,}={0,2}\s*")
_URIS = {
    "image": re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE),
    "clip": re.compile(r"data:(?:video|image|application)/[\w.+-]+;base64,", re.IGNORECASE),
}
_KEYS = {"image": ("bytes", "path"), "clip": ("bytes", "path", "frames", "fps")}
_MEANT = {
    "image": '"bytes", "path" or both',
    "clip": '"bytes", "path" or both, or "frames", with "fps" if it is known',
}
_WORDS = {"image": "an image", "clip": "a clip"}


class Medium(NamedTuple):
    """The path of an image or clip, "" if it has none, and its file's content.

    A clip's content is a `ClipFile`, whatever the row has of it.
    """

    path: str
    content: bytes | ImageFile | ClipFile


def kind_of(medium: Medium) -> MediaKind:
    return "clip" if isinstance(medium.content, ClipFile) else "image"


def medium(
    folders: Sequence[str], row: Mapping[str, Any], what: str, kind: MediaKind, value: Any
) -> Medium:
    """An image or clip of a cell's value: a path, base64, a file's bytes, or a dict of these.

    A path that ends as a video's does is a clip, whatever `kind` says.

    Args:
      folders: that paths are below; none: they are names of columns of `row`.
      what: the item, in messages.

    Raises:
      ValueError: it is none of these, or there is no such column.
    """
    if isinstance(value, Mapping):
        return _described(folders, row, what, kind, value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _held("", bytes(value), kind)
    if not isinstance(value, str):
        raise ValueError(
            f"{what}: {_WORDS[kind]} is a {type(value).__name__}; it must be a path, bytes, or"
            " base64"
        )
    if not value:
        raise ValueError(f"{what}: {_WORDS[kind]} has neither a path nor bytes")
    if uri := _URIS[kind].match(value):
        return _held("", _decoded(value[uri.end() :], what, kind), kind)
    if not folders and isinstance(row.get(value), bytes):
        return _held(value, row[value], kind)
    if _BASE64.fullmatch(value) and not _exists(folders, value):
        with contextlib.suppress(ValueError):
            return _held("", _decoded(value, what, kind), kind)
    if not folders:
        raise ValueError(f"{what}: the row has no {kind} {value[:100]!r}")
    if kind == "clip" or is_video_name(value):
        return Medium(value, ClipFile(tuple(folders), value))
    return Medium(value, ImageFile(tuple(folders), value))


def _described(
    folders: Sequence[str],
    row: Mapping[str, Any],
    what: str,
    kind: MediaKind,
    value: Mapping[str, Any],
) -> Medium:
    unknown = [key for key in value if key not in _KEYS[kind] and value[key] is not None]
    if unknown or not value:
        raise ValueError(
            f"{what}: {_WORDS[kind]} is a dict of {', '.join(map(repr, value)) or 'nothing'}; it"
            f" must have {_MEANT[kind]}"
        )
    path = _text(value.get("path") or "")
    fps, frames = _rate(value.get("fps"), what), value.get("frames")
    if frames is not None:
        if not isinstance(frames, list | tuple | np.ndarray) or not len(frames):
            raise ValueError(f'{what}: the "frames" of a clip must be a list of images')
        contents = [medium(folders, row, what, "image", frame).content for frame in frames]
        kept = tuple(content for content in contents if not isinstance(content, ClipFile))
        if len(kept) < len(contents):
            raise ValueError(f'{what}: one of the "frames" of a clip is a video, no image')
        return Medium(path, ClipFile(content=kept, fps=fps))
    if value.get("bytes"):
        held = medium(folders, row, what, kind, value["bytes"]).content
        if isinstance(held, bytes):
            return _held(path, held, kind)
        return Medium(path, held)
    named = medium(folders, row, what, kind, path)
    if fps is not None and isinstance(named.content, ClipFile) and not named.content.content:
        return Medium(path, ClipFile(named.content.folders, path, fps=fps))
    return named


def _held(path: str, content: bytes, kind: MediaKind) -> Medium:
    is_clip = kind == "clip" or is_video_name(path)
    return Medium(path, ClipFile(path=path, content=content) if is_clip else content)


def _rate(value: Any, what: str) -> float | None:
    if value is None:
        return None
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f'{what}: the "fps" of a clip is {value!r}; it must be a number above 0')
    return rate


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _decoded(text: str, what: str, kind: MediaKind) -> bytes:
    """The bytes of base64; ValueError, which names `what`, if it is none or empty."""
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{what}: {_WORDS[kind]} is no base64: {error}") from error
    if not data:
        raise ValueError(f"{what}: {_WORDS[kind]} in base64 is empty")
    return data


def _exists(folders: Sequence[str], path: str) -> bool:
    """Whether there is such a file; a very long text is none."""
    places = [os.path.join(folder, path) for folder in folders]
    return len(path) < 4096 and any(map(os.path.exists, places))
