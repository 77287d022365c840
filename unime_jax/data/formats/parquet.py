"""Parquet files: a row is read with its row group, and groups that were read last are kept."""

import collections
import concurrent.futures
import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from absl import logging
from jaxtyping import Int64

from unime_jax import files
from unime_jax.data.formats import rows
from unime_jax.data.formats.file_reads import FileStamp, check_unchanged, stamp
from unime_jax.data.quarantine import BadExample

KEPT_BYTES = 2**29  # of row groups that a process keeps; one alone may be larger
SLOW_GROUP = 2**26  # bytes; to read so many for a row is slow

Key = tuple[FileStamp, int, tuple[str, ...]]


class Groups:
    """The row groups of a process that were read last, each by one thread while others wait."""

    def __init__(self, kept_bytes: int):
        self._kept_bytes = kept_bytes
        self._lock = threading.Lock()
        self._groups: collections.OrderedDict[Key, concurrent.futures.Future[pyarrow.Table]] = (
            collections.OrderedDict()
        )

    def get(self, key: Key, read: Callable[[], pyarrow.Table]) -> pyarrow.Table:
        """The group, by `read` if it is not kept."""
        with self._lock:
            future = self._groups.get(key)
            is_new = future is None
            if future is None:
                future = self._groups[key] = concurrent.futures.Future()
            self._groups.move_to_end(key)
        if not is_new:
            return future.result()
        try:
            future.set_result(read())
        except BaseException as error:
            with self._lock:
                self._groups.pop(key, None)
            future.set_exception(error)
            raise
        self._drop_oldest()
        return future.result()

    def _drop_oldest(self) -> None:
        with self._lock:
            read = [
                (key, future.result().nbytes)
                for key, future in self._groups.items()
                if future.done() and not future.exception()
            ]
            total = sum(size for _, size in read)
            for key, size in read[:-1]:
                if total > self._kept_bytes:
                    del self._groups[key]
                    total -= size


_groups = Groups(KEPT_BYTES)


@dataclasses.dataclass(frozen=True, eq=False)
class ParquetRows:
    """The rows of a file; images and nested columns as Arrow gives them, dicts, lists and bytes."""

    source: str
    file: FileStamp
    folders: tuple[str, ...]
    columns: tuple[str, ...]
    ends: Int64[np.ndarray, " groups"]  # rows up to the end of each row group
    has_schema = True
    is_nested = True

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = rows.checked(index, len(self))
        group = int(np.searchsorted(self.ends, index, side="right"))
        first = int(self.ends[group - 1]) if group else 0
        read = functools.partial(_read, self.file, group, self.columns)
        try:
            table = _groups.get((self.file, group, self.columns), read)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, not the data
                raise
            reason = f"row group {group} of {self.file.name} cannot be read: {error}"
            raise BadExample(self.source, str(index), "", reason) from error
        row: dict[str, Any] = table.slice(index - first, 1).to_pylist()[0]
        return row

    def row_id(self, index: int) -> str:
        return ""

    def only(self, columns: Sequence[str]) -> "ParquetRows":
        kept = tuple(name for name in self.columns if name in columns)
        return dataclasses.replace(self, columns=kept)


def open_file(path: files.Path, source: str, folders: tuple[str, ...]) -> ParquetRows:
    """The rows of a local file, of which only the footer is read.

    Raises:
      ValueError: it is no parquet file, or is cut off.
    """
    file = stamp(path)
    try:
        with pyarrow.parquet.ParquetFile(file.path) as content:
            metadata, names = content.metadata, content.schema_arrow.names
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no parquet file: {error}") from error
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    sizes = [group.total_byte_size for group in groups]
    if len(sizes) and max(sizes) > SLOW_GROUP and sum(sizes) > KEPT_BYTES:
        logging.warning(
            "%s has row groups of up to %d MB, and rows are read a group at a time, in a random"
            " order: slow. Write it with smaller ones, for example by"
            " pyarrow.parquet.write_table(table, path, row_group_size=100)",
            path,
            max(sizes) >> 20,
        )
    ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
    return ParquetRows(source, file, folders, tuple(names), ends)


def _read(file: FileStamp, group: int, columns: tuple[str, ...]) -> pyarrow.Table:
    check_unchanged(file)
    with pyarrow.parquet.ParquetFile(file.path, metadata=_metadata(file)) as content:
        return content.read_row_group(group, columns=list(columns), use_threads=False)


@functools.lru_cache(maxsize=1024)
def _metadata(file: FileStamp) -> pyarrow.parquet.FileMetaData:
    return pyarrow.parquet.read_metadata(file.path)
