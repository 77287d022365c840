"""Memory-mapped safetensors files: only indexed bytes are read.

A mapping lives as long as the view of it, so that bytes that were read are not counted as memory of
this process any longer. A slice is copied once, straight to its destination.
"""

import dataclasses
import json
import math
import pathlib
import stat
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
import safetensors.numpy

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ALIGNMENT = 8  # bytes that the header is padded to
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
    """Location of a tensor in a file. `offset`: bytes from the start of the file."""

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
    """Tensors of a safetensors file, by name.

    Raises:
      ValueError: the file is truncated or no safetensors file, or a dtype is not supported.
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
    for name, entry in header.items():
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if end - begin != math.prod(shape) * dtype.itemsize or not 0 <= begin <= end:
            raise ValueError(f"{file}: the header gives {name} {end - begin} bytes for {shape}.")
        if start + end > size:
            raise ValueError(f"{file} is cut short within {name}: download it again.")
        tensors[name] = Tensor(file, dtype, shape, start + begin)
    return tensors


def save_file(
    tensors: Mapping[str, np.ndarray], file: pathlib.Path, *, metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file, with the permissions of the umask.

    The safetensors library alone makes files that only their owner can read.
    """
    file.unlink(missing_ok=True)
    file.touch()
    mode = file.stat().st_mode
    safetensors.numpy.save_file(dict(tensors), file, metadata=dict(metadata))
    file.chmod(stat.S_IMODE(mode))


def write_file(
    layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    tensors: Iterable[np.ndarray],
    file: pathlib.Path,
    *,
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file tensor by tensor, as they come; none is kept.

    Args:
      layout: dtype and shape of each tensor, by name in the order that they come in.
      tensors: the values.
      file: to be written.
      metadata: of the header.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in layout.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for (name, (dtype, shape)), tensor in zip(layout.items(), tensors, strict=True):
            assert (tensor.dtype, tensor.shape) == (dtype, shape), name
            stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def checkpoint_files(folder: pathlib.Path) -> dict[str, set[str]]:
    """Safetensors files of a folder, with the tensor names that the index lists for each.

    As in transformers, a single file takes precedence; it has no list. {} without any file.

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
