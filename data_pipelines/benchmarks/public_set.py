"""A public set as the catalogue names it, and what a reader says of the set it has prepared."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Entries of set.json that only the reader of a public set knows.

    `rows` is a file or a glob relative to the set's folder. `images` is the folder that image paths
    are relative to: relative to the set's folder, or absolute; an absolute one that lies in the
    set's folder is written relative to it. `counts` are the rows that were read of each subset.
    `extra` holds the keys of the set's kind.
    """

    rows: str
    images: str
    counts: Mapping[str, int]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """Public set of one kind: where its files lie, what they should hold, and who reads them.

    `repository` is a dataset's id on the Hugging Face hub, "" for a set that is not there; `note`
    then says how to get it. `revision` is a commit, or its first digits; "": the newest one.
    `files` are globs of paths in the repository, in which `*` stands for `/`, too; each must match.
    `archives` are globs of the zips and tars among them. Each archive is unpacked, in this order,
    into a folder beside it that has its name without the ending: `a/images.zip` into `a/images`. A
    single root folder of the same name is left out: `images/1.jpg` in it is `a/images/1.jpg`. Parts
    of an archive (`x.tar.gz-00`, `x.tar.gz-01`) are read as one, and unpacked into `x`.

    `counts` are the public numbers of rows by subset; `Prepared.counts` must have those that are
    named. `read` takes the raw folder, in the public layout, and the folder of the prepared set,
    both absolute; it writes below `<folder>/rows`.
    """

    name: str
    kind: str
    counts: Mapping[str, int]
    read: Callable[[Path, Path], Prepared]
    repository: str = ""
    revision: str = ""
    files: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()
    gated: bool = False
    licence: str = ""
    note: str = ""
