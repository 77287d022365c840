"""Cells of training pairs: a side's text, images and clips, and what single values stand for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from unime_jax.data.media_cells import Medium, kind_of


class Cells(NamedTuple):
    """A side's text, and its images and clips in their order."""

    text: str | bytes = ""
    media: tuple[Medium, ...] = ()


def joined(cells: Cells, media: tuple[Medium, ...], what: str) -> Cells:
    """An item's cells, with images or clips from columns of their own."""
    if cells.media and media:
        kind = kind_of(cells.media[0])
        raise ValueError(
            f"{what}: it has {kind}s, and its column of {kind_of(media[0])}s has others"
        )
    return Cells(cells.text, cells.media or media)


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
