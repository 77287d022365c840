"""CSV and TSV: a header line, then rows found by their byte offsets, as Python's csv reads them."""

import array
import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from unime_jax import files
from unime_jax.data.formats import rows
from unime_jax.data.formats.file_reads import FileStamp, read_at, stamp
from unime_jax.data.formats.index_cache import Index, index_of
from unime_jax.data.images import MAX_BYTES
from unime_jax.data.quarantine import BadExample

DELIMITERS = {".csv": ",", ".tsv": "\t"}
MAX_CELL = 2 * MAX_BYTES  # characters; an image in base64 has a third more than its file
BOM = b"\xef\xbb\xbf"

csv.field_size_limit(MAX_CELL)  # of the process; by default no image in base64 fits


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The rows of a file, every cell a str; blank lines are none. A quoted cell may have lines."""

    source: str
    file: FileStamp
    folders: tuple[str, ...]
    delimiter: str
    columns: tuple[str, ...]
    starts: Int64[np.ndarray, " _"]  # bytes; one more, the last: the end
    lines: Int64[np.ndarray, " n"]  # numbers of the rows' first lines, from 1
    has_schema = True
    is_nested = False

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict[str, str]:
        index = rows.checked(index, len(self))
        start, end = map(int, self.starts[index : index + 2])
        try:
            text = read_at(self.file, start, end - start).decode()
            cells = next(_reader(text, self.delimiter))
        except (ValueError, csv.Error) as error:
            raise self._bad(index, f"it cannot be read: {error}") from error
        if len(cells) != len(self.columns):
            reason = f"{len(cells)} cells, where the header has {len(self.columns)}"
            raise self._bad(index, reason)
        return dict(zip(self.columns, cells, strict=True))

    def row_id(self, index: int) -> str:
        return f"line {int(self.lines[index])}"

    def only(self, columns: Sequence[str]) -> "Table":
        return self

    def _bad(self, index: int, reason: str) -> BadExample:
        return BadExample(self.source, self.row_id(index), "", reason)


def open_file(path: files.Path, source: str, folders: tuple[str, ...]) -> Table:
    """The rows of a local file, of which no more than the offsets are held in memory.

    Raises:
      ValueError: there is no header, or a cell that never ends.
    """
    file = stamp(path)
    delimiter = DELIMITERS[path.suffix.lower()]
    index = index_of(file, f"csv {delimiter}", lambda: _index(file, delimiter))
    if len(index["starts"]) < 2:
        raise ValueError(f"{path} is empty; its first line must be a header, the columns' names")
    start, end = map(int, index["starts"][:2])
    try:
        text = read_at(file, start, end - start).removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the header is not UTF-8: {error}") from error
    columns = tuple(name.strip() for name in next(_reader(text, delimiter)))
    if twice := [name for name in dict.fromkeys(columns) if columns.count(name) > 1]:
        raise ValueError(f"{path}: the header has {', '.join(map(repr, twice))} more than once")
    return Table(source, file, folders, delimiter, columns, index["starts"][1:], index["lines"][1:])


def _reader(text: str, delimiter: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)


def _index(file: FileStamp, delimiter: str) -> Index:
    """Starts of the header and the rows, then the end, and the numbers of their first lines."""
    starts, numbers = array.array("q"), array.array("q")
    read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        with open(file.path, "rb") as content:
            for line in content:
                first = not read
                read += len(line)
                # Every byte is a character; all of the syntax is ASCII.
                yield (line.removeprefix(BOM) if first else line).decode("latin-1")

    reader = csv.reader(lines(), delimiter=delimiter)
    start, number, end = 0, 1, 0
    try:
        for cells in reader:
            if len(cells) > 1 or any(cell.strip() for cell in cells):
                starts.append(start)
                numbers.append(number)
                end = read
            start, number = read, reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{file.path}, the row of line {number}: {error}. Is there a quotation mark that"
            " nothing closes, or are lines ended by CR alone?"
        ) from error
    starts.append(end)
    return {
        "starts": np.frombuffer(starts, np.int64),
        "lines": np.frombuffer(numbers, np.int64) if numbers else np.zeros(0, np.int64),
    }
