"""Safetensors files, mapped into memory: nothing is read but what is indexed.

A mapping lives no longer than the view of it, so that what has been read does not stay counted as
this process's memory, and a slice is copied once, straight to where it is wanted.
"""

import dataclasses
import json
import math
import pathlib
import stat
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors.numpy

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
FLOATS = frozenset(DTYPES[name] for name in ("F16", "BF16", "F32", "F64"))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in a file."""

    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        """A read-only view; index it before it is copied."""
        if math.prod(self.shape) == 0:  # which cannot be mapped
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


def open_file(file: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, by name.

    Raises:
      ValueError: it is not a whole safetensors file, or of a dtype that this code does not know.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        if not 2 <= header_size <= size - 8:
            raise ValueError(f"{file} is cut short, or is no safetensors file: download it again.")
        header = json.loads(stream.read(header_size))
    header.pop("__metadata__", None)
    start = 8 + header_size
    unknown = {name: x["dtype"] for name, x in header.items() if x["dtype"] not in DTYPES}
    if unknown:
        name = min(unknown)
        raise ValueError(
            f"{file}: {len(unknown)} tensor(s) of a dtype that is not supported, such as {name} of "
            f"{unknown[name]}; quantised weights must be converted to float first."
        )
    tensors = {}
    for name, facts in header.items():
        dtype, shape = DTYPES[facts["dtype"]], tuple(facts["shape"])
        begin, end = facts["data_offsets"]
        if end - begin != math.prod(shape) * dtype.itemsize or not 0 <= begin <= end:
            raise ValueError(f"{file}: the header gives {name} {end - begin} bytes for {shape}.")
        if start + end > size:
            raise ValueError(f"{file} is cut short within {name}: download it again.")
        tensors[name] = Tensor(file, dtype, shape, start + begin)
    return tensors


def save_file(
    tensors: Mapping[str, np.ndarray], file: pathlib.Path, *, metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file with the permissions that any new file gets, by the umask.

    The safetensors library makes files that nobody but their owner can read.
    """
    file.unlink(missing_ok=True)
    file.touch()
    mode = file.stat().st_mode
    safetensors.numpy.save_file(dict(tensors), file, metadata=dict(metadata))
    file.chmod(stat.S_IMODE(mode))


def checkpoint_files(folder: pathlib.Path) -> dict[str, set[str]]:
    """The safetensors files of a folder, and the names an index promises to be in each.

    As in transformers, a single file comes first. Empty if there is neither.

    Raises:
      ValueError: the index names a file that is not there.
    """
    if (folder / SINGLE).exists():
        return {SINGLE: set()}
    if not (folder / INDEX).exists():
        return {}
    files: dict[str, set[str]] = {}
    for name, file in json.loads((folder / INDEX).read_text())["weight_map"].items():
        files.setdefault(file, set()).add(name)
    absent = sorted(file for file in files if not (folder / file).exists())
    if absent:
        raise ValueError(f"{folder / INDEX} names files that are absent: {', '.join(absent)}")
    return dict(sorted(files.items()))
