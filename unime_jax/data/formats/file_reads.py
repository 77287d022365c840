"""Reads at byte offsets, from any thread, of files that must not change while rows are read."""

import functools
import os
from typing import NamedTuple

from unime_jax import files

OPEN_FILES = 128  # of a process at a time; a data set may have more shards than it may open


class FileStamp(NamedTuple):
    """A local file as it was when its rows were found."""

    path: str
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """The file's own, without its folder."""
        return os.path.basename(self.path)


class ChangedFileError(RuntimeError):
    """A file whose rows are no longer where they were; no row of it can be trusted."""


def stamp(path: files.Path) -> FileStamp:
    """The file as it is now."""
    status = os.stat(path)
    return FileStamp(os.path.abspath(path), status.st_size, status.st_mtime_ns)


def read_at(file: FileStamp, offset: int, size: int) -> bytes:
    """Bytes of a file.

    Raises:
      ChangedFileError: the file is not the one that was stamped.
      OSError: it cannot be read.
    """
    opened = _opened(file)
    opened.check(file)
    pieces = []
    while size:
        piece = os.pread(opened.number, size, offset)
        if not piece:
            raise _changed(file)
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def check_unchanged(file: FileStamp) -> None:
    """Raises ChangedFileError if the path leads to another file than the one that was stamped."""
    status = os.stat(file.path)
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise _changed(file)


class _Opened:
    """A file descriptor, closed when the last thread that reads from it lets go."""

    def __init__(self, file: FileStamp):
        self.number = os.open(file.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def check(self, file: FileStamp) -> None:
        status = os.fstat(self.number)
        if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            raise _changed(file)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(maxsize=OPEN_FILES)
def _opened(file: FileStamp) -> _Opened:
    return _Opened(file)


def _changed(file: FileStamp) -> ChangedFileError:
    return ChangedFileError(
        f"{file.path} has changed since it was opened: its rows are no longer where they were."
        " Start again, with data that nobody writes to"
    )
