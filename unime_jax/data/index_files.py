"""Files of a saved index: codes of vectors, ids, and how the vectors are coded.

vectors.npy          [entries, width]: float32, float16, or codes of `quantized_vectors`
ids.npy              UTF-8 bytes [entries]
quantization.json    precision, dimension and ranges; a float32 index has none
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from unime_jax import files
from unime_jax.data.embedding_store import RECORD, open_embeddings, save_array
from unime_jax.data.quantized_vectors import Codes, Quantization, of_record, to_record
from unime_jax.operations import local_copies

QUANTIZATION = "quantization.json"
COPIED = 2**26  # numbers that are copied at once

Reader = Callable[[Int[np.ndarray, " rows"]], Codes]  # codes of entries, by number


class Stored(NamedTuple):
    """A folder that is open: its codes are read as they are asked for."""

    quantization: Quantization
    ids: list[str]
    read: Reader


def is_own(folder: files.Path) -> bool:
    """Whether a folder is as `save` writes it; what job embed wrote has a record, too."""
    return (folder / "ids.npy").exists() and not (folder / RECORD).exists()


def save(folder: files.Path, quantization: Quantization, ids: Sequence[str], read: Reader) -> None:
    """Writes the files; the folder appears, or takes the place of an earlier one, when whole.

    Raises:
      ValueError: there is no entry, or the folder is there, and `save` did not write it.
    """
    if not ids:
        raise ValueError("the index has no entry; add some before it is saved")
    if folder.exists() and not is_own(folder):
        raise ValueError(f"{folder} exists, and no index wrote it; take another folder")
    with files.replacing(folder, last="ids.npy") as partial:
        _write_vectors(partial / "vectors.npy", quantization, len(ids), read)
        if quantization.precision != "float32":
            record = json.dumps(to_record(quantization))
            (partial / QUANTIZATION).write_text(record + "\n")
        save_array(partial / "ids.npy", np.array([id.encode() for id in ids], "S"))


def load(folder: files.Path) -> Stored:
    """Opens what `save` or job embed wrote; vectors are mapped into memory, not read.

    Raises:
      ValueError: it is no such folder, or damaged.
    """
    local = local_copies.local_copy(folder)
    if not (local / QUANTIZATION).exists():
        stored = open_embeddings(folder)
        ids = [id.decode() for id in stored.ids.tolist()]
        return Stored(Quantization("float32", stored.dimension), ids, stored.at)
    try:
        quantization = of_record(json.loads((local / QUANTIZATION).read_bytes()))
        codes = np.load(local / "vectors.npy", mmap_mode="r", allow_pickle=False)
        ids = [id.decode() for id in np.load(local / "ids.npy", allow_pickle=False).tolist()]
    except (OSError, ValueError, EOFError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder} is no whole index: {error}") from error
    expected = (len(ids), quantization.width)
    if codes.shape != expected or codes.dtype != quantization.dtype:
        raise ValueError(
            f"{folder}: vectors.npy has shape {codes.shape} and dtype {codes.dtype}; ids.npy and"
            f" {QUANTIZATION} say {expected} and {quantization.dtype}"
        )
    matrix = codes.view(np.ndarray)  # still mapped, but a memmap is slow to index
    return Stored(quantization, ids, lambda rows: matrix[rows])


def _write_vectors(
    file: pathlib.Path, quantization: Quantization, count: int, read: Reader
) -> None:
    """All codes, part by part."""
    shape = count, quantization.width
    matrix = np.lib.format.open_memmap(file, mode="w+", dtype=quantization.dtype, shape=shape)
    step = max(1, COPIED // quantization.width)
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        matrix[rows] = read(rows)
    matrix.flush()
