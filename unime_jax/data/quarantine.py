"""The list of training examples that could not be used, kept beside the run."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple


class BadItem(NamedTuple):
    """Which example was left out, the image it failed on ("" if none), and why."""

    source: str
    id: str
    path: str
    reason: str


class BadExample(ValueError):  # noqa: N818 (what is bad is the example)
    """An example that cannot be trained on; the loader replaces it and reports `item`."""

    def __init__(self, source: str, id: str, path: str, reason: str):
        super().__init__(source, id, path, reason)  # all arguments, so that it can be pickled
        self.item = BadItem(source, id, path, reason)

    def __str__(self) -> str:
        where = f", image {self.item.path!r}" if self.item.path else ""
        return f"source {self.item.source!r}, example {self.item.id!r}{where}: {self.item.reason}"


class Quarantine:
    """Appends every bad item once to a JSON-lines file and stops a run that has too many.

    Items already in the file (from before a restart) are not written again. The share counts
    what this process read since it started: bad reads over all reads, checked from `min_read` on.
    """

    def __init__(self, path: str | os.PathLike, max_share: float = 0.05, min_read: int = 256):
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share is a share between 0 and 1, not {max_share}")
        self.path = pathlib.Path(path)
        self.max_share = max_share
        self.min_read = min_read
        self.read = self.bad = 0
        self._seen = {item[:3] for item in read_quarantine(self.path)}

    def __len__(self) -> int:
        """Distinct items in the file."""
        return len(self._seen)

    def add(self, items: Iterable[BadItem], read: int) -> None:
        """Notes the bad `items` among the `read` examples of one batch (PackInfo has both).

        Raises ValueError when more than `max_share` of all examples read were bad.
        """
        items = list(items)
        new = {item[:3]: item for item in items if item[:3] not in self._seen}
        if new:
            self._append(new.values())
            self._seen.update(new)
        self.read += read
        self.bad += len(items)
        if self.read >= self.min_read and self.bad > self.max_share * self.read:
            last = f" The last: {BadExample(*items[-1])}." if items else ""
            raise ValueError(
                f"{self.bad} of {self.read} examples read were unusable, more than the limit of "
                f"{self.max_share:.1%}.{last} All are listed in {self.path}: repair the data, or "
                "raise the limit."
            )

    def _append(self, items: Iterable[BadItem]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(item._asdict(), ensure_ascii=False) + "\n" for item in items)
        with open(self.path, "ab+") as file:
            if file.tell():  # a run killed while writing leaves half a line: start a fresh one
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else "\n" + lines
            file.write(lines.encode())


def read_quarantine(path: str | os.PathLike) -> list[BadItem]:
    """The items of a quarantine file; none if it does not exist. Half-written lines are skipped."""
    path = pathlib.Path(path)
    items = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            items.append(BadItem(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return items
