"""Archives of public sets, unpacked whole or not at all; bytes of members stay as they are."""

import dataclasses
import fnmatch
import functools
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from absl import logging
from tqdm import tqdm

from data_pipelines.benchmarks.joined_parts import JoinedParts
from data_pipelines.benchmarks.raw_paths import below

PARTIAL = ".partial"  # after the name of a folder that is not whole
LEFT_OUT = re.compile(r"__MACOSX/.*|(.*/)?(\.DS_Store|\._[^/]*)")  # what macOS adds to archives
BLOCK = 512  # bytes; a tar begins with one that says so, and ends with empty ones
BUFFER = 2**20  # bytes of an archive that are read at a time
# What readers of archives raise at damaged or encrypted ones.
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError,
    RuntimeError, FileExistsError, NotADirectoryError, IsADirectoryError,
)  # fmt: skip

_NAME = re.compile(r"(?P<stem>.+?)\.(?P<kind>zip|tar\.gz|tgz|tar)(?P<part>[-._][\w.-]+)?")


@dataclasses.dataclass(frozen=True)
class Member:
    """A file of an archive; `open` is called before the next member is asked for."""

    name: str
    size: int  # bytes
    open: Callable[[], IO[bytes]]


def unpack_all(raw: Path, patterns: Sequence[str], *, required: bool = True) -> None:
    """Unpacks the archives in `raw` that match, each into a folder beside it; see `PublicSet`.

    A folder that is there is whole, and not made again. Its archive may then be gone.

    Args:
      required: whether archives must be there; what others have unpacked may lie elsewhere.

    Raises:
      FileNotFoundError: there is neither an archive of a pattern nor the folder that it becomes.
      ValueError, OSError: as `unpack`.
    """
    for pattern in patterns:
        targets: dict[Path, list[Path]] = {}
        for archive in _archives(raw, pattern):
            targets.setdefault(folder_of(archive), []).append(archive)
        is_unpacked = not _is_glob(pattern) and folder_of(raw / pattern).is_dir()
        if required and not targets and not is_unpacked:
            raise FileNotFoundError(
                f"{raw} has no archive {pattern}, nor the folder that it is unpacked into"
            )
        for target, parts in sorted(targets.items()):
            if not target.is_dir():
                unpack(_in_order(parts), target)


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, or a part of one, by its name."""
    return _NAME.fullmatch(path.name) is not None


def folder_of(archive: Path) -> Path:
    """The folder that an archive, or a part of one, is unpacked into.

    Raises:
      ValueError: by its name it is no archive.
    """
    name = _NAME.fullmatch(archive.name)
    if name is None:
        raise ValueError(f"{archive} must end in .zip, .tar, .tar.gz or .tgz, or be a part of one")
    return archive.with_name(name["stem"])


def unpack(parts: Sequence[Path], target: Path) -> None:
    """Unpacks one archive, which may be in parts, into the folder `target`, unless that is there.

    Raises:
      ValueError: it is damaged, a part is missing, or a member is a link or would lie elsewhere.
      OSError: the disk is full.
    """
    if target.is_dir():
        return
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    name = parts[0].name if len(parts) == 1 else f"{parts[0].name} to {parts[-1].name}"
    where = f"{parts[0].parent}: {name}"
    logging.info("unpacking %s into %s", where, target)
    partial.mkdir(parents=True)
    members = _zip_members if ".zip" in parts[0].name else _tar_members
    show = sys.stderr.isatty()
    try:
        with (
            JoinedParts(parts) as content,
            tqdm(total=content.size, desc=name, unit="B", unit_scale=True, disable=not show) as bar,
        ):
            for member in members(io.BufferedReader(content, BUFFER)):
                if not LEFT_OUT.fullmatch(member.name):
                    _write(member, partial)
                bar.update(max(content.tell() - bar.n, 0))
        _without_root(partial, target.name).replace(target)
    except DAMAGE as error:
        raise ValueError(
            f"{where} is damaged, or a part of it is missing ({type(error).__name__}: {error}); "
            "remove it, and fetch it again"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}; nothing of this archive is kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _in_order(parts: Sequence[Path]) -> list[Path]:
    """The parts of an archive by their numbers (00, 01) or letters (aa, ab).

    Raises:
      ValueError: one is missing, or there are several archives that would be the same folder.
    """
    if len(parts) == 1 and not _suffix(parts[0]):
        return list(parts)
    numbers = {}
    for part in parts:
        label = re.sub(r"^[-._](part)?[-._]?", "", _suffix(part))
        if label.isdecimal():
            numbers[int(label)] = part
        elif re.fullmatch("[a-z]+", label):
            numbers[sum((ord(c) - ord("a")) * 26**i for i, c in enumerate(label[::-1]))] = part
    first = min(numbers, default=0)
    if first > 1 or sorted(numbers) != list(range(first, first + len(parts))):
        names = ", ".join(sorted(part.name for part in parts))
        raise ValueError(
            f"{parts[0].parent}: {names} are not all parts of one archive, or not that alone; "
            "fetch what is missing, or remove what does not belong there"
        )
    return [numbers[number] for number in sorted(numbers)]


def _suffix(archive: Path) -> str:
    """What a part's name has after that of the archive: "-00"; "" of a whole archive."""
    name = _NAME.fullmatch(archive.name)
    return (name["part"] or "") if name else ""


def _archives(raw: Path, pattern: str) -> list[Path]:
    """Files that match, but for those in folders that archives were unpacked into."""
    if not _is_glob(pattern):
        return [raw / pattern] if (raw / pattern).is_file() else []
    matching = []
    for folder, folders, names in os.walk(raw):
        paths = [Path(folder, name) for name in names]
        unpacked = {folder_of(path).name for path in paths if is_archive(path)}
        folders[:] = [
            name
            for name in folders
            if name not in unpacked and not name.startswith(".") and not name.endswith(PARTIAL)
        ]
        matching += [
            path for path in paths if fnmatch.fnmatchcase(path.relative_to(raw).as_posix(), pattern)
        ]
    return matching


def _is_glob(pattern: str) -> bool:
    return any(letter in pattern for letter in "*?[")


def _zip_members(content: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(content) as archive:
        for info in archive.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(f"{info.filename!r} is a link")
            if not info.is_dir():
                yield Member(info.filename, info.file_size, functools.partial(archive.open, info))


def _tar_members(content: IO[bytes]) -> Iterator[Member]:
    is_compressed = content.read(BLOCK)[257:262] != b"ustar"
    content.seek(0)
    with tarfile.open(fileobj=content, mode="r|*") as archive:
        for info in archive:
            if not info.isfile() and not info.isdir():
                raise ValueError(f"{info.name!r} is a link or a device")
            if info.isfile():
                opened = archive.extractfile(info)
                assert opened is not None  # it is a file
                yield Member(info.name, info.size, functools.partial(_itself, opened))
    if not is_compressed:  # tarfile takes the end of the file for the end of the archive
        content.seek(-BLOCK, os.SEEK_END)
        if any(content.read(BLOCK)):
            raise EOFError("the end of the archive is missing")


def _itself(content: IO[bytes]) -> IO[bytes]:
    return content


def _write(member: Member, folder: Path) -> None:
    path = below(folder, member.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as content, path.open("wb") as file:
        shutil.copyfileobj(content, file, BUFFER)
        if file.tell() != member.size:
            raise EOFError(f"{member.name} has {file.tell()} of {member.size} bytes")


def _without_root(folder: Path, name: str) -> Path:
    """The folder in `folder` that is called `name`, if there is nothing else; else `folder`."""
    inside = list(folder.iterdir())
    is_root = len(inside) == 1 and inside[0].name == name and inside[0].is_dir()
    return inside[0] if is_root else folder
