"""Small files of a run: written whole or not at all, read back with doubt, and full disks told.

What a run reads back was written by another process, maybe killed, on a disk that may have been
full. What it can do without is set aside with a warning; what it cannot is refused in a sentence.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

# What a disk says that takes no more, as errno and as libraries in C++ and Rust word it.
DISK = {
    errno.ENOSPC: "no space left on device",
    errno.EDQUOT: "disk quota exceeded",
    errno.EROFS: "read-only file system",
    errno.EIO: "input/output error",
}


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """A file that is whole from the moment it has its name, also after a power cut.

    Raises:
      OSError: it cannot be written; what was there before stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # a failed write does not know it
        raise


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, or holds something else; the message says what.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not JSON as written here: nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {json.dumps(found)[:40]}, not a JSON object")
    return found


def set_aside(path: pathlib.Path, why: object) -> None:
    """Renames a damaged file that a run can do without, and says so."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    try:
        path.rename(aside)
    except OSError as error:
        logging.warning("%s is damaged (%s) and cannot be renamed: %s", path, why, error)
        return
    logging.warning("%s is damaged (%s); it is now %s, and is begun again", path, why, aside.name)


@contextlib.contextmanager
def disk_errors(*folders: pathlib.Path) -> Iterator[None]:
    """Says of every write that a disk refuses, wherever it is, which disk and what to do.

    Args:
      folders: where a job writes. An error often does not name its file; then it is those of them,
        and the temporary folder, that have no room.

    Raises:
      RuntimeError: in place of the disk's error.
    """
    try:
        yield
    except Exception as error:
        trouble = disk_trouble(error)
        if trouble is None or _is_told(error):
            raise
        reason, path = trouble
        where = path or ", ".join(map(str, _full(folders) or folders[:1]))
        raise RuntimeError(
            f"{where} cannot be written: {reason}. See to it that there is room on that disk and "
            "that it works; then the same command goes on from what is complete."
        ) from error


def disk_trouble(error: BaseException) -> tuple[str, str] | None:
    """What a disk has said and of which file ("": unknown), if that is the reason of an error."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in DISK:
            return os.strerror(one.errno), str(one.filename2 or one.filename or "")
        if not isinstance(one, OSError):
            text = str(one).lower()
            for number, words in DISK.items():
                if words in text and number != errno.EIO:
                    return os.strerror(number), ""
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return None


def _is_told(error: Exception) -> bool:
    """Whether an error was worded by this package already, with what to do."""
    return isinstance(error, RuntimeError | ValueError) and "the same command" in str(error)


def _full(folders: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    found = []
    for folder in (*folders, pathlib.Path(tempfile.gettempdir())):
        existing = next((f for f in (folder, *folder.absolute().parents) if f.exists()), folder)
        with contextlib.suppress(OSError):
            if shutil.disk_usage(existing).free < 2**20:
                found.append(folder)
    return found
