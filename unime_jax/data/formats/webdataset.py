"""Webdataset shards: tar files whose members of one name, but for the ending, are a row."""

import array
import dataclasses
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from unime_jax import files
from unime_jax.data.formats import rows
from unime_jax.data.formats.file_reads import FileStamp, read_at, stamp
from unime_jax.data.formats.index_cache import Index, index_of
from unime_jax.data.quarantine import BadExample

_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # a row's name, and an ending
_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")
_CLIPS = ("mp4", "m4v", "mov", "webm", "mkv", "avi")
_TEXTS = ("txt", "text", "caption", "transcript", "cls", "id")  # endings of texts


@dataclasses.dataclass(frozen=True, eq=False)
class TarRows:
    """The rows of a shard: members by ending, and the keys of a member "json".

    Texts are str, other members bytes. A member takes the place of a JSON key of the same name. A
    row's only picture is column "image", too, and its only video "video", as rows differ in their
    endings.
    """

    source: str
    file: FileStamp
    members: Int64[np.ndarray, "m 3"]  # offset, size, number of the ending
    starts: Int64[np.ndarray, " _"]  # first members of the n rows, then the number of all
    names: UInt8[np.ndarray, " _"]  # of the rows, in UTF-8, one after the other
    name_starts: Int64[np.ndarray, " _"]  # as `starts`, of `names`
    endings: tuple[str, ...]
    has_schema = False
    is_nested = True
    folders: tuple[str, ...] = ()  # images are members

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = rows.checked(index, len(self))
        values: dict[str, Any] = {}
        members: dict[str, Any] = {}
        for offset, size, number in self.members[self.starts[index] : self.starts[index + 1]]:
            ending = self.endings[number]
            content = read_at(self.file, int(offset), int(size))
            try:
                if ending == "json":
                    values = _object(content)
                else:
                    members[ending] = content.decode() if ending in _TEXTS else content
            except (ValueError, RecursionError) as error:
                reason = f"its member .{ending} cannot be read: {error}"
                raise BadExample(self.source, self.row_id(index), "", reason) from error
        for name, endings in (("image", _PICTURES), ("video", _CLIPS)):
            given = [content for ending, content in members.items() if ending in endings]
            if len(given) == 1:
                members[name] = given[0]
        return values | members

    @property
    def columns(self) -> tuple[str, ...]:
        return rows.keys_of_first(self)

    def row_id(self, index: int) -> str:
        start, end = self.name_starts[index : index + 2]
        return self.names[start:end].tobytes().decode(errors="replace")

    def only(self, columns: Sequence[str]) -> "TarRows":
        return self


def open_file(path: files.Path, source: str, folders: tuple[str, ...]) -> TarRows:
    """The rows of a local file, of which no more than members' places and names are in memory.

    Raises:
      ValueError: it is compressed, no tar file, or cut off, or a row has two members of one ending.
    """
    del folders
    file = stamp(path)
    index = index_of(file, "tar", lambda: _index(file))
    return TarRows(
        source,
        file,
        index["members"],
        index["starts"],
        index["names"],
        index["name_starts"],
        tuple(json.loads(index["endings"].tobytes())),
    )


def _object(content: bytes) -> dict[str, Any]:
    value = json.loads(content.decode())
    if not isinstance(value, dict):
        raise ValueError(f"it is no JSON object, but {json.dumps(value)[:40]}")
    return value


def _index(file: FileStamp) -> Index:
    members, starts, names, name_starts = (array.array(c) for c in "qqBq")
    endings: dict[str, int] = {}
    row, seen = None, set[str]()
    try:
        for member in _files(file.path):
            if not (parts := _MEMBER.fullmatch(member.name)):
                continue
            name, ending = parts[1], parts[2].lower()
            if name != row:
                starts.append(len(members) // 3)
                name_starts.append(len(names))
                names.frombytes(name.encode(errors="surrogateescape"))
                row, seen = name, set()
            if ending in seen:
                raise ValueError(f"{file.path}: {name} has two members .{ending}")
            seen.add(ending)
            number = endings.setdefault(ending, len(endings))
            members.extend((member.offset_data, member.size, number))
    except tarfile.TarError as error:
        raise ValueError(
            f"{file.path} is no tar file that can be read at any place: {error}. A compressed one"
            " must be unpacked (gunzip); one that was cut off, fetched again"
        ) from error
    starts.append(len(members) // 3)
    name_starts.append(len(names))
    return {
        "members": np.array(members, np.int64).reshape(-1, 3),
        "starts": np.array(starts, np.int64),
        "names": np.array(names, np.uint8),
        "name_starts": np.array(name_starts, np.int64),
        "endings": np.frombuffer(json.dumps(list(endings)).encode(), np.uint8),
    }


def _files(path: str) -> Iterator[tarfile.TarInfo]:
    """Plain files of a tar file, of which none is kept in memory."""
    with tarfile.open(path, "r:") as content:
        for member in content:
            if member.isreg() and not member.issparse():
                yield member
            content.members.clear()  # type: ignore[attr-defined]  # else they pile up
