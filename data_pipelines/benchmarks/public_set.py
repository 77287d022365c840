"""A public set as the catalogue names it, and what a reader says of the set it has prepared."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Entries of set.json that only the reader of a public set knows.

    `rows` is a file or a glob relative to the set's folder. `images` is the folder that image paths
    are relative to: relative to the set's folder, or absolute where local copies lie elsewhere.
    `counts` are the rows that were read of each subset. `extra` holds the keys of the set's kind.
    """

    rows: str
    images: str
    counts: Mapping[str, int]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """Public set of one kind: where its files lie, what they should hold, and who reads them.

    `repository` is a dataset's id on the Hugging Face hub, "" for a set that is not there; `note`
    then says how to get it. `files` are globs of paths in the repository, `archives` globs of the
    zips and tars among them, in the order in which they are unpacked; the parts of one archive are
    joined. `counts` are the public numbers of rows by subset, empty where they are unknown. `read`
    takes the raw folder, in the public layout, and the folder of the prepared set.
    """

    name: str
    kind: str
    repository: str
    revision: str
    files: tuple[str, ...]
    archives: tuple[str, ...]
    counts: Mapping[str, int]
    read: Callable[[Path, Path], Prepared]
    gated: bool = False
    licence: str = ""
    note: str = ""
