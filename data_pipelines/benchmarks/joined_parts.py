"""The parts of a cut file as one seekable file, which is never written."""

import bisect
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO


class JoinedParts(io.RawIOBase):
    """Content of several files, one after the other; a part is open while it is read."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._parts = tuple(parts)
        self._ends = list(itertools.accumulate(part.stat().st_size for part in parts))
        self._position = 0
        self._file: BinaryIO | None = None
        self._number = -1  # of the part that is open

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return self._ends[-1] if self._ends else 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(f"a seek to {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer) -> int:
        number = bisect.bisect_right(self._ends, self._position)
        if number == len(self._parts):
            return 0
        if number != self._number or self._file is None:
            self._drop()
            self._file, self._number = self._parts[number].open("rb"), number
        first = self._ends[number - 1] if number else 0
        self._file.seek(self._position - first)
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self._position += count
        return int(count)

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
