"""Writer of on-disk embedding stores: at once, or block by block by jobs that may die."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unime_jax import files
from unime_jax.batch import Item
from unime_jax.data.embedding_store import (
    RECORD,
    block_file,
    item_id,
    load_array,
    open_matrix,
    read_record,
    save_array,
)

BLOCK = 8192  # rows of a file
DTYPES = ("float16", "float32")
# Where a model or a data set lies may change, and so may versions; what they are may not.
NOT_COMPARED = (
    "count",
    "complete",
    "provenance.backbone",
    "provenance.commits",
    "provenance.versions",
)


def write(
    folder: str | files.Path,
    items: Sequence[Item | str],
    vectors: np.ndarray,
    *,
    provenance: Mapping[str, Any] | None = None,
    block: int = BLOCK,
) -> None:
    """Writes vectors [n, D] of items or texts, from wherever they come; the folder must be new.

    Give images with their bytes: ids are made of them (`embeddings.item_id`). float16 and float32
    stay what they are, other dtypes become float32. The folder appears when all of it is written.

    Raises:
      ValueError: it exists, or the vectors are not finite, not of the items' number, or several
        are of one item.
    """
    folder, vectors = files.as_path(folder), np.asarray(vectors)
    if folder.exists():
        raise ValueError(f"{folder} exists already; delete it first, or take another name")
    if vectors.ndim != 2 or len(vectors) != len(items) or not vectors.size:
        raise ValueError(
            f"vectors have shape {vectors.shape}, for {len(items)} items; they must be"
            " [items, dimension], and at least one"
        )
    ids = np.array([item_id(item) for item in items], "S32")
    distinct, first = np.unique(ids, return_index=True)
    if len(distinct) < len(ids):
        twice = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        raise ValueError(
            f"{len(ids) - len(distinct)} of {len(ids)} items came before, the first is"
            f" items[{twice}]: {str(items[twice])[:200]!r}; an item has one vector"
        )
    dtype = vectors.dtype.name if vectors.dtype.name in DTYPES else "float32"
    with files.replacing(folder, last=RECORD) as partial:
        writer = Writer(
            partial,
            items=len(ids),
            dimension=vectors.shape[1],
            dtype=dtype,
            block=block,
            provenance=provenance or {},
        )
        for number in writer.missing():
            span = slice(number * block, (number + 1) * block)
            writer.put(number, ids[span], vectors[span])
        writer.finish()


class Writer:
    """The blocks of a folder, written in any order, also by several processes that share it.

    A file has its name only when it is whole, and the folder is complete only after `finish`.
    What was written before a process was killed is taken up by the next `Writer`.
    """

    def __init__(
        self,
        folder: files.Path,
        *,
        items: int,
        dimension: int,
        dtype: str,
        block: int,
        provenance: Mapping[str, Any],
    ):
        """Begins or resumes a folder for so many items.

        Raises:
          ValueError: what is there was begun with something else; the message lists what changed.
        """
        if dtype not in DTYPES or block < 1 or items < 1:
            raise ValueError(
                f"{items} items in blocks of {block} rows, {dtype}: there must be at least one, in"
                f" blocks of at least one, of {' or '.join(DTYPES)}"
            )
        self.folder = folder
        self._record = {
            "count": None,
            "dimension": dimension,
            "dtype": dtype,
            "block": block,
            "blocks": -(-items // block),
            "complete": False,
            "provenance": json.loads(json.dumps(provenance)),
        }
        if (folder / RECORD).exists():
            changes = _changes(read_record(folder), self._record)
            if changes:
                raise ValueError(
                    f"{folder} was begun with something else, and its vectors would not go"
                    " together. Take another folder, or go back to what changed:\n  "
                    + "\n  ".join(changes)
                )
            return
        if any(folder.glob("vectors/*.npy")):
            raise ValueError(f"{folder} has vectors, but no {RECORD} that says what they are")
        (folder / "vectors").mkdir(parents=True, exist_ok=True)
        self._write_record(self._record)

    def missing(self) -> list[int]:
        """Numbers of the blocks that are still to be written."""
        if self._is_complete():
            return []
        return [n for n in range(self._record["blocks"]) if not self._is_whole(n)]

    def put(self, number: int, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Writes a block: vectors [rows, D] and their ids; none where all its items were bad.

        Raises:
          ValueError: they are not finite, or not of the right shape.
        """
        with np.errstate(over="ignore"):  # said below, with the item's name
            vectors = vectors.astype(self._record["dtype"], copy=False)
        shape, dimension = vectors.shape, self._record["dimension"]
        if shape != (len(ids), dimension) or len(ids) > self._record["block"]:
            raise ValueError(f"block {number}: {len(ids)} ids for vectors {shape}, D = {dimension}")
        if not np.isfinite(vectors).all():
            row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
            raise ValueError(
                f"block {number}: the vector of {bytes(ids[row])!r}, row {row}, is not finite in"
                f" {vectors.dtype}"
            )
        save_array(self._ids_file(number), np.asarray(ids, "S32"))
        # last: it says that the block is whole
        save_array(block_file(self.folder, number), vectors)

    def finish(self) -> bool:
        """Completes the folder if all blocks are there; whether it is complete now.

        Raises:
          ValueError: there is not a single vector.
        """
        if not self._is_complete():
            try:
                if self.missing():
                    return self._is_complete()
                ids = [load_array(self._ids_file(n)) for n in range(self._record["blocks"])]
            except FileNotFoundError:  # another process was faster, and has tidied up
                return self._is_complete()
            count = sum(map(len, ids))
            if not count:
                raise ValueError(f"{self.folder}: of all items, not one could be embedded")
            save_array(self.folder / "ids.npy", np.concatenate(ids))
            self._write_record(read_record(self.folder) | {"count": count, "complete": True})
        for pattern in ("vectors/*.ids", "vectors/*.tmp", "*.npy.*.tmp", "*.json.*.tmp"):
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)
        return True

    def _is_complete(self) -> bool:
        return read_record(self.folder)["complete"]

    def _is_whole(self, number: int) -> bool:
        """Also false for what was cut off when the folder was copied."""
        try:
            vectors = open_matrix(block_file(self.folder, number))
            ids = load_array(self._ids_file(number))
        except (OSError, ValueError, EOFError):
            return False
        shape = len(ids), self._record["dimension"]
        return vectors.shape == shape and vectors.dtype.name == self._record["dtype"]

    def _ids_file(self, number: int) -> files.Path:
        return block_file(self.folder, number).with_suffix(".ids")

    def _write_record(self, record: Mapping[str, Any]) -> None:
        files.write_whole(self.folder / RECORD, json.dumps(record, indent=2) + "\n")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, a line each; of what was not there before or is not now, null."""
    a, b = dict(files.leaves(before)), dict(files.leaves(now))
    return [
        f"{key}: {json.dumps(a.get(key))} before, {json.dumps(b.get(key))} now"
        for key in sorted(a | b)
        if a.get(key) != b.get(key) and not key.startswith(NOT_COMPARED)
    ]
