"""Errors of disks that take no more, in words that say which disk and what to do."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

from unime_jax import files

# What a disk says that takes no more, as errno and as libraries in C++ and Rust word it.
DISK = {
    errno.ENOSPC: "no space left on device",
    errno.EDQUOT: "disk quota exceeded",
    errno.EROFS: "read-only file system",
    errno.EIO: "input/output error",
}


@contextlib.contextmanager
def explained(*folders: files.Path) -> Iterator[None]:
    """Errors of full and broken disks, in words that name the disk and what to do.

    Args:
      folders: where a job writes. An error often does not name its file; then it is those of them,
        and the temporary folder, that have no room.

    Raises:
      RuntimeError: in place of the disk's error.
    """
    try:
        yield
    except Exception as error:
        trouble = trouble_of(error)
        if trouble is None or _is_told(error):
            raise
        reason, path = trouble
        where = path or ", ".join(map(str, _full(folders) or folders[:1]))
        raise RuntimeError(
            f"{where} cannot be written: {reason}. See to it that there is room on that disk and "
            "that it works; then the same command goes on from what is complete."
        ) from error


def trouble_of(error: BaseException) -> tuple[str, str] | None:
    """Reason and file ("": unknown) of an error that a disk has caused; None: another cause."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in DISK:
            return os.strerror(cause.errno), str(cause.filename2 or cause.filename or "")
        if not isinstance(cause, OSError):
            text = str(cause).lower()
            for number, words in DISK.items():
                if words in text and number != errno.EIO:
                    return os.strerror(number), ""
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _is_told(error: Exception) -> bool:
    """True if this package has worded the error already, with what to do."""
    return isinstance(error, RuntimeError | ValueError) and "the same command" in str(error)


def _full(folders: Sequence[files.Path]) -> list[pathlib.Path]:
    """Local folders on disks without room."""
    local = [folder for folder in folders if isinstance(folder, pathlib.Path)]
    full = []
    for folder in (*local, pathlib.Path(tempfile.gettempdir())):
        existing = next((f for f in (folder, *folder.absolute().parents) if f.exists()), folder)
        with contextlib.suppress(OSError):
            if shutil.disk_usage(existing).free < 2**20:
                full.append(folder)
    return full
