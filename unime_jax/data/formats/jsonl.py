"""JSON lines: a JSON object a line, found by its byte offset."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from unime_jax import files
from unime_jax.data.formats import rows
from unime_jax.data.formats.file_reads import FileStamp, read_at, stamp
from unime_jax.data.formats.index_cache import Index, index_of
from unime_jax.data.quarantine import BadExample

BLOCK = 2**24  # bytes that are looked through at a time
MAX_LINE = 2**30  # bytes; a longer line is no row
BOM = b"\xef\xbb\xbf"  # that some editors begin a file with


@dataclasses.dataclass(frozen=True, eq=False)
class JsonLines:
    """The rows of a file; blank lines are none."""

    source: str
    file: FileStamp
    folders: tuple[str, ...]
    starts: Int64[np.ndarray, " n"]  # bytes
    lines: Int64[np.ndarray, " _"]  # numbers of the rows' lines, from 1; empty: no line is blank
    has_schema = False
    is_nested = True

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = rows.checked(index, len(self))
        start = int(self.starts[index])
        end = int(self.starts[index + 1]) if index + 1 < len(self) else self.file.size
        if end - start > MAX_LINE:
            raise self._bad(index, f"a line of {end - start} bytes; the limit is {MAX_LINE}")
        try:
            row = json.loads(read_at(self.file, start, end - start).decode())
        except (ValueError, RecursionError) as error:
            raise self._bad(index, f"no JSON: {error}") from error
        if not isinstance(row, dict):
            raise self._bad(index, f"a row is a JSON object, not {json.dumps(row)[:40]}")
        return row

    @property
    def columns(self) -> tuple[str, ...]:
        return rows.keys_of_first(self)

    def row_id(self, index: int) -> str:
        return f"line {int(self.lines[index]) if len(self.lines) else index + 1}"

    def only(self, columns: Sequence[str]) -> "JsonLines":
        return self

    def _bad(self, index: int, reason: str) -> BadExample:
        return BadExample(self.source, self.row_id(index), "", reason)


def open_file(path: files.Path, source: str, folders: tuple[str, ...]) -> JsonLines:
    """The rows of a local file, of which no more than the offsets are held in memory."""
    file = stamp(path)
    index = index_of(file, "jsonl", lambda: _index(file))
    return JsonLines(source, file, folders, index["starts"], index["lines"])


def _index(file: FileStamp) -> Index:
    """Starts of the lines that are not blank, and their numbers if others are."""
    starts, written = [np.zeros(1, np.int64)], []
    for line_ends, has_text in _blocks(file):
        starts.append(line_ends)
        written.append(has_text)
    start, kept = np.concatenate(starts), np.concatenate([*written, np.zeros(0, np.bool_)])
    start = start[: len(kept)]
    lines = np.flatnonzero(kept) + 1
    start = start[kept]
    if len(start) and start[0] == 0 and read_at(file, 0, min(3, file.size)) == BOM:
        start[0] = len(BOM)
    none = np.zeros(0, np.int64)  # not a slice, which would keep all of them in memory
    return {"starts": start, "lines": lines if len(lines) < len(kept) else none}


def _blocks(file: FileStamp) -> Iterator[tuple[Int64[np.ndarray, " _"], Bool[np.ndarray, " _"]]]:
    """Ends of the lines that end in each block, and whether they have more than white space."""
    offset, pending = 0, False
    while offset < file.size:
        block = np.frombuffer(read_at(file, offset, min(BLOCK, file.size - offset)), np.uint8)
        ends = np.flatnonzero(block == ord("\n")).astype(np.int64) + 1
        parts = np.concatenate([np.zeros(1, np.int64), ends])
        if parts[-1] == len(block):
            parts = parts[:-1]
        has_text = np.logical_or.reduceat(block > ord(" "), parts)
        has_text[0] |= pending
        offset += len(block)
        ended = has_text[: len(ends)]
        pending = bool(has_text[-1]) if len(has_text) > len(ends) else False
        if offset == file.size and len(has_text) > len(ends):  # a last line without an end
            ended = has_text
        yield ends + (offset - len(block)), ended
