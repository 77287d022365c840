"""Files and folders of a run, on local disks and in buckets: atomic writes, checked reads.

A local path is a `pathlib.Path`, one of a bucket an `epath.Path` ("gs://bucket/run"). The one habit
of writing: a local file is written beside its place, flushed to the disk and renamed; an object of
a bucket appears whole by itself. A bucket has no appending, no renaming and no folders.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from absl import logging

os.environ.setdefault("EPATH_USE_TF", "false")  # one client of buckets, whatever is installed

from etils import epath  # noqa: E402

Path: TypeAlias = pathlib.Path | epath.Path

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:/")


def as_path(text: str | os.PathLike[str]) -> Path:
    """A local path, "~" expanded, or a path of a Google Cloud Storage bucket.

    Raises:
      ValueError: a URL of another kind, or gcsfs is not installed.
    """
    text = os.fspath(text)
    if not _URL.match(text):
        return pathlib.Path(text).expanduser()
    if not text.startswith("gs://") or not text.removeprefix("gs://").strip("/"):
        raise ValueError(
            f"{text!r} is neither a path nor gs://<bucket>/<folder>. Other stores can be mounted, "
            "and a mounted folder be given"
        )
    bucket_client()
    return epath.Path(text)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """True for a path of a bucket."""
    return os.fspath(path).startswith("gs://")


def absolute(path: Path) -> Path:
    """Absolute, symbolic links kept."""
    return path.absolute() if isinstance(path, pathlib.Path) else path


def resolved(path: Path) -> Path:
    """Absolute, symbolic links followed; a bucket has none."""
    return path.resolve() if isinstance(path, pathlib.Path) else path


def bucket_client() -> Any:
    """The fsspec client of buckets.

    Raises:
      ValueError: gcsfs is not installed.
    """
    try:
        import fsspec.config
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "gs:// needs the package gcsfs: pip install 'unime_jax[gcs]', or mount the bucket (for "
            "example by gcsfuse) and give the mounted folder"
        ) from error
    # Listings that are kept would hide what other processes write.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.backend.fsspec_backend.fs("gs://")


def write_whole(path: Path, content: str | bytes | bytearray | memoryview) -> None:
    """A file that is whole from the moment it has its name, also after a power cut.

    Raises:
      OSError: it cannot be written; what was there before stays.
    """
    data = content.encode() if isinstance(content, str) else content
    if isinstance(path, epath.Path):
        bucket_client().pipe_file(str(path), bytes(data))
        return
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a failed write does not know it
        raise


def _sync_folder(folder: pathlib.Path) -> None:
    """Flushes a folder's names to the disk; some network file systems have no such call."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def append(path: Path, text: str) -> None:
    """Adds text to a small file; after half a line, which a kill has left, on a new one."""
    if isinstance(path, epath.Path):
        before = path.read_bytes() if path.exists() else b""
        line = b"" if before.endswith(b"\n") or not before else b"\n"
        write_whole(path, before + line + text.encode())
        return
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(folder: Path, *, last: str) -> Iterator[pathlib.Path]:
    """A new local folder to write into; when the body is done it takes the place of `folder`.

    Locally that is a rename, and under its name there is never a part of a folder. To a bucket
    files are copied one by one, the one called `last` at the end, and it is the first that is
    deleted of an earlier folder: without it none is complete.
    """
    if isinstance(folder, epath.Path):
        with tempfile.TemporaryDirectory(prefix="unime_jax-") as scratch:
            partial = pathlib.Path(scratch, folder.name)
            partial.mkdir()
            yield partial
            (folder / last).unlink(missing_ok=True)
            remove_tree(folder)
            upload(partial, folder, last=last)
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    former = folder.with_name(folder.name + ".former")
    shutil.rmtree(former, ignore_errors=True)  # of a process that was killed below
    if folder.exists():
        folder.rename(former)  # removed where it is, a kill would leave half of it
    partial.rename(folder)
    _sync_folder(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def upload(source: pathlib.Path, target: epath.Path, *, last: str = "") -> None:
    """Copies the files of a local folder into a bucket, the one called `last` at the end."""
    files = sorted(file for file in source.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file == source / last):
        name = file.relative_to(source).as_posix()
        bucket_client().put_file(str(file), str(target / name))


def remove_tree(folder: Path) -> None:
    """Removes a folder and all below it, if it is there."""
    if isinstance(folder, epath.Path):
        with contextlib.suppress(FileNotFoundError):
            folder.rmtree()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Renames a file or a folder; in a bucket, each file is copied, then deleted."""
    if isinstance(source, epath.Path):
        client, root = bucket_client(), str(source).removeprefix("gs://")
        names = client.find(root)
        if not names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        for name in names:
            client.cp_file(name, str(target).removeprefix("gs://") + name.removeprefix(root))
        client.rm(names)
    else:
        source.rename(target)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, or holds something else; the message says what.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not JSON as written here: nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {json.dumps(value)[:40]}, not a JSON object")
    return value


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested dicts by dotted key; an empty dict is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Dotted keys whose values differ, with both values as JSON; "-" where there is no such key."""
    old, new = (
        {
            key: json.dumps(value, sort_keys=True, default=dataclasses.asdict)
            for key, value in leaves(tree)
        }
        for tree in (before, after)
    )
    return {
        key: (old.get(key, "-"), new.get(key, "-"))
        for key in [*old, *(key for key in new if key not in old)]
        if old.get(key) != new.get(key)
    }


def set_aside(path: Path, why: object) -> None:
    """Renames a damaged file that a run can do without, and says so."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    try:
        move(path, aside)
    except OSError as error:
        logging.warning("%s is damaged (%s) and cannot be renamed: %s", path, why, error)
        return
    logging.warning("%s is damaged (%s); it is now %s, and is begun again", path, why, aside.name)
