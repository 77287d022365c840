"""A cache of indexes, the places of rows in large files, in the user's cache folder.

An index is a few NumPy arrays. It lies below $XDG_CACHE_HOME (~/.cache)/unime_jax/indexes, under
the path of its file, and counts while that has the same size and time of change. One that is stale
or damaged is made anew. Without a folder to write to, indexes are made at every start.
"""

import hashlib
import io
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
from absl import logging

from unime_jax import files
from unime_jax.data.formats.file_reads import FileStamp, check_unchanged

MIN_BYTES = 2**24  # of a file; a smaller one is indexed sooner than its index is read
VERSION = 1  # of what indexes hold

Index = Mapping[str, np.ndarray]


def index_of(file: FileStamp, kind: str, build: Callable[[], Index]) -> Index:
    """The index of a file, from the cache or built.

    Args:
      kind: of index; a file may have several.
      build: reads the whole file.

    Raises:
      ChangedFileError: the file changes while it is read.
      what `build` raises.
    """
    if file.size < MIN_BYTES:
        index = build()
        check_unchanged(file)
        return index
    place = cache_file(file, kind)
    cached = _read(place, file)
    if cached is not None:
        return cached
    logging.info("indexing %s (%.2f GB)", file.path, file.size / 1e9)
    index = build()
    check_unchanged(file)
    _write(place, file, index)
    return index


def cache_file(file: FileStamp, kind: str) -> pathlib.Path:
    """Where the index of a file lies, whether there is one or not."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    digest = hashlib.blake2b(f"{kind}\0{file.path}".encode(), digest_size=16).hexdigest()
    return pathlib.Path(home, "unime_jax", "indexes", f"{digest}.npz")


def _read(place: pathlib.Path, file: FileStamp) -> Index | None:
    """The arrays, whose checksums a zip archive has; None if they are absent, stale or damaged."""
    try:
        with np.load(place, allow_pickle=False) as archive:
            if archive["stamp"].tolist() != _stamp(file):
                return None
            return {name: archive[name] for name in archive.files if name != "stamp"}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("the index %s cannot be used (%s); it is made anew", place, error)
        return None


def _write(place: pathlib.Path, file: FileStamp, index: Index) -> None:
    content = io.BytesIO()
    np.savez(content, stamp=np.array(_stamp(file), np.int64), **index)  # type: ignore[arg-type]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(place, content.getbuffer())
    except OSError as error:
        logging.warning(
            "the index of %s cannot be kept (%s): it is made at every start. Set XDG_CACHE_HOME to"
            " a folder that can be written",
            file.path,
            error,
        )


def _stamp(file: FileStamp) -> list[int]:
    return [VERSION, file.size, file.mtime_ns]
