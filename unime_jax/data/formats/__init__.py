"""Formats of data on disk: random access to the rows of each split of a folder or file."""

from collections.abc import Mapping
from typing import Any, Protocol

from unime_jax import files
from unime_jax.data.formats import tfds


class Source(Protocol):
    """Random access to rows, by column; a list of dicts will do. Images are encoded files."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def open_dataset(path: str | files.Path) -> dict[str, Source]:
    """The rows of each split, by its name; nothing is read yet.

    Raises:
      FileNotFoundError: there is no data of a known format; the message says which there are.
    """
    return {**tfds.open_folder(path)}
