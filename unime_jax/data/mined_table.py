"""Table of mined negatives on disk, which plain NumPy reads: written block by block, joined by row.

    mined.json            sources and their rows, negatives a row, complete, provenance
    negatives/000000.npy  a block of consecutive rows of one source, of `row_type`
    ids.npy               bytes [n]: `embedding_store.item_id` of each candidate
    places.npy            int32 [n, 3]: where it is read: number of the source, row, item of the row
                          (0: the positive, 1 and so on: its negatives)
    positives.npy         int32 [rows]: which candidate a row's positive is, source after source;
                          -1: the row cannot be used

A negative is a number of a candidate. Sources are numbered by name, those of the training data
first, then those of a corpus named apart.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32

from unime_jax import files
from unime_jax.data.embedding_store import load_array, save_array
from unime_jax.operations import local_copies

RECORD = "mined.json"
POSITIVES = "positives.npy"
FORM: Mapping[str, Any] = {
    "complete": bool,
    "content": str,  # hash of all blocks and ids; "" until the table is complete
    "count": int,
    "block": int,
    "sources": dict,
    "corpus": dict,
    "provenance": dict,
}
# Where a model lies may change, and so may versions; what they are may not.
NOT_COMPARED = (
    "complete",
    "content",
    "provenance.backbone",
    "provenance.commits",
    "provenance.versions",
)
MAPPED = 256  # blocks that stay open


def row_type(count: int) -> np.dtype:
    """Of a row of the table, with so many negatives.

    digest: `row_digest`, 0 of a row that could not be used; positive: the positive's score, NaN if
    it or the query has no vector; number: of the negatives, the hardest first, -1: none; score:
    theirs, NaN: none.
    """
    return np.dtype(
        [
            ("digest", "<u8"),
            ("positive", "<f4"),
            ("number", "<i4", (count,)),
            ("score", "<f4", (count,)),
        ]
    )


def row_digest(query: bytes, positive: bytes) -> int:
    """What a row is known by: a hash of the ids of its query and its positive, never 0."""
    digest = hashlib.blake2b(query + b"\0" + positive, digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """Rows and blocks of a table.

    Attributes:
      sources: rows that are mined by source, sorted by name.
      block: rows of a block at most.
      count: negatives of a row.
    """

    sources: Mapping[str, int]
    block: int
    count: int

    def blocks(self) -> list[tuple[str, range]]:
        """The source and the rows of every block."""
        return [
            (name, range(start, min(start + self.block, rows)))
            for name, rows in self.sources.items()
            for start in range(0, rows, self.block)
        ]


class Writer:
    """Blocks of a table, written in any order, also by several processes that share the folder.

    A file has its name only when it is whole; `finish` completes the table.
    """

    def __init__(self, folder: files.Path, layout: Layout, record: Mapping[str, Any]):
        """Begins or resumes a table; `record`: its sources, corpus and provenance, as JSON.

        Raises:
          ValueError: what is there was begun with something else; the message lists what changed.
        """
        self.folder, self.layout = folder, layout
        begun = {"complete": False, "content": "", "count": layout.count, "block": layout.block}
        self._record: dict[str, Any] = {**begun, **json.loads(json.dumps(record))}
        if (folder / RECORD).exists():
            changed = files.changes(read_record(folder), self._record)
            serious = {k: both for k, both in changed.items() if not k.startswith(NOT_COMPARED)}
            if serious:
                listed = [f"{key}: {old} -> {new}" for key, (old, new) in serious.items()]
                raise ValueError(
                    f"{folder} was begun with something else, and its negatives would not go "
                    "together. Take another work directory, or go back to what changed:\n  "
                    + "\n  ".join(listed)
                )
            return
        (folder / "negatives").mkdir(parents=True, exist_ok=True)
        files.write_whole(folder / RECORD, json.dumps(self._record, indent=2) + "\n")

    def put_candidates(
        self,
        ids: np.ndarray,
        places: Int32[np.ndarray, "n 3"],
        positives: Int32[np.ndarray, " rows"],
    ) -> None:
        """Writes what the numbers of candidates mean, unless it is there."""
        arrays = {"ids.npy": ids, "places.npy": places, POSITIVES: positives}
        for name, array in arrays.items():
            if not (self.folder / name).exists():
                save_array(self.folder / name, array)

    def missing(self) -> list[int]:
        """Numbers of the blocks that are still to be written."""
        if self.is_complete():
            return []
        return [n for n in range(len(self.layout.blocks())) if not self._is_whole(n)]

    def put(self, number: int, rows: np.ndarray) -> None:
        """Writes a block of `row_type`."""
        assert rows.dtype == row_type(self.layout.count)
        save_array(block_file(self.folder, number), rows)

    def is_complete(self) -> bool:
        """Whether `finish` was done, by any process."""
        return read_record(self.folder)["complete"]

    def finish(self) -> bool:
        """Completes the table if all blocks are there; whether it is complete now."""
        if self.is_complete():
            return True
        if self.missing():
            return self.is_complete()
        digest = hashlib.blake2b(digest_size=16)
        for array in (load_array(self.folder / "ids.npy"), *self.read_blocks()):
            digest.update(np.ascontiguousarray(array).tobytes())
        done = {"complete": True, "content": digest.hexdigest()}
        record = read_record(self.folder) | done
        files.write_whole(self.folder / RECORD, json.dumps(record, indent=2) + "\n")
        for file in self.folder.glob("negatives/*.tmp"):
            file.unlink(missing_ok=True)
        return True

    def read_blocks(self) -> Iterator[np.ndarray]:
        """The rows of every block."""
        for number in range(len(self.layout.blocks())):
            yield load_array(block_file(self.folder, number))

    def _is_whole(self, number: int) -> bool:
        try:
            rows = load_array(block_file(self.folder, number))
        except (OSError, ValueError, EOFError):
            return False
        _, span = self.layout.blocks()[number]
        return rows.shape == (len(span),) and rows.dtype == row_type(self.layout.count)


class Mined:
    """A complete table, read-only, mapped into memory; `open_mined` makes one.

    Pickled, it is just its path.

    Attributes:
      rows: how many of each source were mined.
      total: how many each source had.
      corpus: path below `data.folder` of a corpus named apart; "": none.
      corpus_sources: its sources, in the order of their numbers.
      content: a hash of all of it.
    """

    def __init__(self, folder: pathlib.Path, record: Mapping[str, Any]):
        self.folder = folder
        self.rows = {name: int(used) for name, (used, _) in record["sources"].items()}
        self.total = {name: int(total) for name, (_, total) in record["sources"].items()}
        self.corpus: str = record["corpus"]["path"]
        self.corpus_sources = tuple(record["corpus"]["sources"])
        self.content: str = record["content"]
        self.layout = Layout(self.rows, record["block"], record["count"])
        self.ids = _mapped(folder / "ids.npy")
        self.places = _mapped(folder / "places.npy")
        self._open = functools.lru_cache(maxsize=MAPPED)(_mapped)
        starts: dict[str, int] = {}
        for number, (name, _) in enumerate(self.layout.blocks()):
            starts.setdefault(name, number)
            file = block_file(folder, number)
            if not file.exists():
                raise ValueError(f"{file} is missing; restore it, or mine again")
        self._starts = starts

    def __reduce__(self):
        return open_mined, (self.folder,)

    def row(self, source: str, index: int) -> np.void:
        """A row of the table, of `row_type`."""
        block, place = divmod(index, self.layout.block)
        return self._open(block_file(self.folder, self._starts[source] + block))[place]

    def blocks(self, source: str) -> Iterator[tuple[range, np.ndarray]]:
        """A source's rows, of `row_type`, block by block, and which they are."""
        for number, (name, span) in enumerate(self.layout.blocks()):
            if name == source:
                yield span, _mapped(block_file(self.folder, number))

    def positives(self, source: str) -> Int32[np.ndarray, " rows"]:
        """The number of each row's positive among the candidates, -1 of rows without use.

        Raises:
          ValueError: the table was mined before these were written.
        """
        if not (self.folder / POSITIVES).exists():
            raise ValueError(
                f"{self.folder} has no {POSITIVES}, which says whose positive a mined candidate is:"
                " run the command that mined it again, which adds the file"
            )
        start = 0
        for name, rows in self.rows.items():
            if name == source:
                break
            start += rows
        return _mapped(self.folder / POSITIVES)[start : start + self.rows[source]]


def open_mined(folder: str | files.Path) -> Mined:
    """Opens the work directory of job mine; of one in a bucket a local copy.

    Raises:
      ValueError: it has no table, or not a complete one.
    """
    folder = files.as_path(folder)
    if not (folder / RECORD).exists():
        raise ValueError(
            f"{folder} has no mined negatives: there is no {RECORD}. Give the work directory of "
            "--config=experiments/mine.py"
        )
    names = (RECORD, "ids.npy", "places.npy", POSITIVES, "negatives/*")
    folder = local_copies.local_copy(folder, patterns=names)
    record = read_record(folder)
    if not record["complete"]:
        raise ValueError(
            f"{folder} is not complete; run the command that mines it again, it goes on where it "
            "stopped"
        )
    return Mined(folder, record)


def read_record(folder: files.Path) -> dict[str, Any]:
    """mined.json; ValueError if it is not one."""
    record = files.read_object(folder / RECORD)
    for key, kind in FORM.items():
        if not isinstance(record.get(key), kind):
            raise ValueError(f"{folder / RECORD} is not as written here: {key} is not what it was")
    return {key: record[key] for key in FORM}


def summary(writer: Writer) -> str:
    """Rows of a complete table, and how many negatives they have."""
    counts = np.zeros(writer.layout.count + 1, np.int64)
    for rows in writer.read_blocks():
        negatives = (rows["number"] >= 0).sum(axis=1)[~np.isnan(rows["positive"])]
        counts += np.bincount(negatives, minlength=len(counts))
    mean = float(np.arange(len(counts)) @ counts) / max(1, counts.sum())
    return (
        f"{counts.sum()} rows have {mean:.3g} negatives on average, {counts[-1]} all "
        f"{len(counts) - 1}, {counts[0]} none"
    )


def block_file(folder: files.Path, number: int) -> files.Path:
    return folder / "negatives" / f"{number:06d}.npy"


def _mapped(file: pathlib.Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is no whole npy file: {error}; mine again") from error
