"""Cells of training pairs: a side's text and images, and what single values stand for."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, NamedTuple

from unime_jax.data.images import ImageFile


class Image(NamedTuple):
    """An image's path, "" if it has none, and its file's content."""

    path: str
    content: bytes | ImageFile


class Cells(NamedTuple):
    """A side's text and images."""

    text: str | bytes = ""
    images: tuple[Image, ...] = ()


def joined(cells: Cells, images: tuple[Image, ...], what: str) -> Cells:
    """An item's cells, with images from a column of their own."""
    if cells.images and images:
        raise ValueError(f"{what}: it has images, and its column of images has others")
    return Cells(cells.text, cells.images or images)


def decoded(text: str, what: str) -> bytes:
    """The bytes of base64; ValueError, which names `what`, if it is none or empty."""
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{what}: an image is no base64: {error}") from error
    if not data:
        raise ValueError(f"{what}: an image in base64 is empty")
    return data


def is_given(value: Any) -> bool:
    """Whether a value, or any part of a dict, is there and not empty."""
    if isinstance(value, Mapping):
        return any(is_given(part) for part in value.values())
    is_empty = hasattr(value, "__len__") and not len(value)
    return value is not None and not is_nan(value) and not is_empty


def is_nan(value: Any) -> bool:
    """Whether a cell is pandas' mark of an empty one."""
    return isinstance(value, float) and value != value


def id_of(value: Any) -> str:
    """A row's id as text, "" of None; ValueError for a dict or a list."""
    if isinstance(value, Mapping | list):
        raise ValueError(f"its id is a {type(value).__name__}; it must be a text or a number")
    return "" if value is None else text_of(value)


def text_of(value: Any) -> str:
    """A value as text. UnicodeDecodeError for bytes that are not UTF-8."""
    return value.decode() if isinstance(value, bytes) else str(value)
