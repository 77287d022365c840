"""Table of a dataset's distinct items: numbered once, media read when an encoder asks for them."""

import array
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np
from jaxtyping import Float32

from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import CLIP, Item, Media, MediaKind
from unime_jax.data.clip_files import is_video_name
from unime_jax.data.images import ImageError
from unime_jax.data.strange_texts import text_fault

Encode = Callable[[Sequence[Item]], np.ndarray]  # n items -> float [n, D]
Images = Callable[[str], bytes]  # path of an image or a clip -> encoded bytes
# Item.key: text and paths, as all media of an evaluation are in one place; see `Media.key`.
Key = tuple[str, str]


class ItemTable(Sequence[Item]):
    """Distinct items by text and paths of media, in the order in which they were added.

    An index reads the item's media, so that no more of them are in memory than an encoder holds. It
    may be asked from several threads.

    Attributes:
      keys: text and paths of media by item number.
    """

    def __init__(self, images: Images, where: Callable[[int], str]):
        """`where`: names a row of the dataset, for errors."""
        self.keys: list[Key] = []
        self._numbers: dict[Key, int] = {}
        self._rows = array.array("i")  # where each item was met first
        self._images, self._where = images, where

    def add(self, key: Key, row: int) -> int:
        """The number of an item; ValueError for a text that no tokenizer takes."""
        number = self._numbers.setdefault(key, len(self.keys))
        if number == len(self.keys):
            if fault := text_fault(key[0]):
                raise ValueError(f"{self._where(row)}: {fault}")
            self.keys.append(key)
            self._rows.append(row)
        return number

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        item = self.bare(index)
        media = (dataclasses.replace(bare, data=self._read(bare, index)) for bare in item.media)
        return dataclasses.replace(item, media=tuple(media))

    def bare(self, index: int) -> Item:
        """An item without the content of its media."""
        return bare_item(self.keys[index])

    def where(self, index: int) -> str:
        """The dataset and the row that an item was met in first."""
        return self._where(self._rows[index])

    def _read(self, media: Media, index: int) -> bytes:
        where = f"{self.where(index)}: {media.kind} {media.path!r}"
        try:
            data = self._images(media.path)
        except ImageError as error:
            raise ValueError(f"{where}: {error}") from error
        except (KeyError, OSError) as error:
            raise ValueError(f"{where} has no file; fetch the {media.kind}s again") from error
        if not data:
            raise ValueError(f"{where} has no file or an empty one; fetch it again")
        return data


def encode_table(name: str, table: ItemTable, encode: Encode) -> Float32[np.ndarray, "n D"]:
    """Unit vectors of all items, in order.

    Raises:
      ValueError: an image is missing or cannot be decoded, the encoder refuses an item, or a
        vector has no direction (zero, infinite or NaN). The message names dataset, row and item.
    """
    try:
        vectors = np.asarray(encode(table))
    except ValueError as error:
        raise blamed({name: table}, error) from error
    if vectors.ndim != 2 or len(vectors) != len(table):
        raise ValueError(
            f"{name}: encode returned shape {vectors.shape} for {len(table)} items; expected [n, D]"
        )
    return _normalise(vectors, table)


def bare_item(key: Key) -> Item:
    """The item of a key, without the content of its media."""
    text, paths = key
    return Item(text, tuple(map(_bare_media, paths.split("\0"))) if paths else ())


def _bare_media(name: str) -> Media:
    """The inverse of `Media.key`."""
    return Media(name.removeprefix(CLIP), kind="clip") if name.startswith(CLIP) else Media(name)


def paths_of(images: Any, clips: Any = None) -> str:
    """Paths of an item's images and then of its clips, as in its key; "": it has none.

    A cell is a path or a list of several. An image's path that ends as those of videos do is a
    clip's.

    Raises:
      ValueError: one of several is empty, or a path has a NUL, which divides those of a key, or an
        image's begins as the name of a clip.
    """
    named = [CLIP + path if is_video_name(path) else path for path in _paths(images, "image")]
    return "\0".join([*named, *(CLIP + path for path in _paths(clips, "clip"))])


def _paths(cell: Any, kind: MediaKind) -> list[str]:
    several = isinstance(cell, list | tuple | np.ndarray)
    paths = [text_of(path) for path in (cell if several else [cell])]
    if any("\0" in path or path.startswith(CLIP) for path in paths):
        raise ValueError(f"a path of {paths} is no path of {kind}s: it has a NUL or {CLIP!r}")
    if any(paths) and not all(paths):
        raise ValueError(f"{kind} {paths.index('') + 1} of {len(paths)} has no path: {paths}")
    return paths if any(paths) else []


def text_of(value: Any) -> str:
    """TFDS hands strings over as UTF-8 bytes; None is MMEB's other way to say no image."""
    if isinstance(value, bytes):
        return value.decode()
    return "" if value is None else str(value)


def blamed(tables: Mapping[str, ItemTable], error: ValueError) -> ValueError:
    """An encoder's error with the row of the item that its message names.

    `tables`: items that it was called with, by the name of their dataset.
    """
    said = str(error)
    names = list(tables)
    if not names or said.startswith(tuple(names)):  # of `ItemTable._read`
        return error
    where, longest = " to ".join(dict.fromkeys([names[0], names[-1]])), 0
    for table in tables.values():
        for number in range(len(table)):
            name = name_of(table.bare(number))
            if len(name) > longest and name in said:
                where, longest = table.where(number), len(name)
    image = any(isinstance(cause, ImageError) for cause in (error, error.__cause__))
    hint = "; the file cannot be decoded: fetch it again" if image else ""
    return ValueError(f"{where}: {said}{hint}")


def _normalise(vectors: np.ndarray, table: ItemTable) -> Float32[np.ndarray, "n D"]:
    """The vectors over their norms, both in float64 and rounded once."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"{table.where(first)}: {len(bad)} of {len(table)} embeddings are zero or not finite, "
            f"so they have no cosine; the first belongs to {str(table.bare(first))[:500]}"
        )
    unit = np.empty(vectors.shape, np.float32)
    return np.divide(vectors, norms[:, None], out=unit, casting="same_kind")
