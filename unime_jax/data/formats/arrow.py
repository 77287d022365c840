"""Arrow files, as `save_to_disk` of Hugging Face datasets writes them: record batches, mapped."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
from jaxtyping import Int64

from unime_jax import files
from unime_jax.data.formats import rows
from unime_jax.data.formats.file_reads import FileStamp, check_unchanged, stamp

SPLITS, STATE = "dataset_dict.json", "state.json"


class ArrowRows:
    """The rows of a file, which is mapped into memory anew in every process."""

    has_schema = True
    is_nested = True

    def __init__(
        self,
        source: str,
        file: FileStamp,
        folders: tuple[str, ...],
        columns: tuple[str, ...] | None = None,
    ):
        """`columns` None: all."""
        self.source, self.file, self.folders, self._chosen = source, file, folders, columns

    def __reduce__(self) -> Any:
        return ArrowRows, (self.source, self.file, self.folders, self._chosen)

    def __len__(self) -> int:
        ends = self._content[1]
        return int(ends[-1]) if len(ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = rows.checked(index, len(self))
        batches, ends, _ = self._content
        number = int(np.searchsorted(ends, index, side="right"))
        first = int(ends[number - 1]) if number else 0
        batch = batches[number].slice(index - first, 1)
        row: dict[str, Any] = batch.select(list(self.columns)).to_pylist()[0]
        return row

    @property
    def columns(self) -> tuple[str, ...]:
        return self._content[2] if self._chosen is None else self._chosen

    def row_id(self, index: int) -> str:
        return ""

    def only(self, columns: Sequence[str]) -> "ArrowRows":
        kept = tuple(name for name in self.columns if name in columns)
        return ArrowRows(self.source, self.file, self.folders, kept)

    @functools.cached_property
    def _content(
        self,
    ) -> tuple[list[pyarrow.RecordBatch], Int64[np.ndarray, " batches"], tuple[str, ...]]:
        """Record batches, the rows up to the end of each, and the columns."""
        check_unchanged(self.file)
        with pyarrow.memory_map(self.file.path) as content:  # which stays mapped once it is closed
            try:
                batches, schema = _read(content)
            except pyarrow.ArrowException as error:
                raise ValueError(f"{self.file.path} is no Arrow file: {error}") from error
        ends = np.cumsum([batch.num_rows for batch in batches], dtype=np.int64)
        return batches, ends, tuple(schema.names)


def open_file(path: files.Path, source: str, folders: tuple[str, ...]) -> ArrowRows:
    """The rows of a local file, a stream or a "feather" file.

    Raises:
      ValueError: it is no such file, or is cut off.
    """
    result = ArrowRows(source, stamp(path), folders)
    len(result)
    return result


def is_folder(folder: files.Path) -> bool:
    """Whether `save_to_disk` has written it."""
    return (folder / SPLITS).exists() or (folder / STATE).exists()


def split_folders(folder: files.Path) -> dict[str, files.Path]:
    """The folder of each split. Raises ValueError for a folder that is not complete."""
    if not (folder / SPLITS).exists():
        split = files.read_object(folder / STATE).get("_split")
        return {split if isinstance(split, str) and split else folder.name: folder}
    names = files.read_object(folder / SPLITS).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder / SPLITS} has no list of splits")
    return {name: folder / name for name in names}


def data_files(folder: files.Path) -> list[files.Path]:
    """The files of a split in order.

    Raises:
      FileNotFoundError: there is no state.json, or a file that it names.
      ValueError: it says that rows are other than they lie in the files.
    """
    state = files.read_object(folder / STATE)
    if any(state.get(key) for key in ("_indices_files", "_indices_data_files")):
        raise ValueError(
            f"{folder / STATE} says that rows are chosen by an index beside them, as old versions"
            " of datasets wrote it; load it and save it again with save_to_disk"
        )
    named = state.get("_data_files")
    if not isinstance(named, list) or not all(isinstance(entry, dict) for entry in named):
        raise ValueError(f"{folder / STATE} has no list of data files")
    paths = [folder / str(entry.get("filename")) for entry in named]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which its {STATE} names")
    return paths


def _read(content: pyarrow.NativeFile) -> tuple[list[pyarrow.RecordBatch], pyarrow.Schema]:
    if content.read(6) == b"ARROW1":
        content.seek(0)
        table = pyarrow.ipc.open_file(content)
        return [table.get_batch(i) for i in range(table.num_record_batches)], table.schema
    content.seek(0)
    with pyarrow.ipc.open_stream(content) as stream:
        return list(stream), stream.schema
