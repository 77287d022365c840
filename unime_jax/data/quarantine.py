"""Quarantine: a JSON-lines list, in the work directory, of examples that could not be used."""

import json
from collections.abc import Iterable
from typing import NamedTuple

from unime_jax import files
from unime_jax.batch import Item


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


class MediaError(ValueError):
    """One of an item's media that cannot be used.

    Attributes:
      path: its own, "" if it has none.
      place: its place in the item, see `place_of`.
    """

    def __init__(self, message: str, path: str, place: str):
        super().__init__(message, path, place)  # all arguments, so that it can be pickled
        self.path, self.place = path, place

    def __str__(self) -> str:
        return str(self.args[0])


def place_of(item: Item, number: int) -> str:
    """The place of an item's media, counted from 0, in words: "image 2 of 3", or just "image"."""
    kind, count = item.media[number].kind, len(item.media)
    return f"{kind} {number + 1} of {count}" if count > 1 else kind


def failed_path(item: Item, error: ValueError) -> str:
    """Path of the image that an item failed on; "" if the error is not about one of several."""
    if isinstance(error, MediaError):
        return error.path
    return item.media[0].path if len(item.media) == 1 else ""


class UnusableSource(ValueError):  # noqa: N818
    """A source without a good row among those tried; the run ends, and `items` say why."""

    def __init__(self, source: str, rows: int, items: tuple[BadItem, ...]):
        super().__init__(source, rows, items)  # all arguments, so that it can be pickled
        self.source, self.rows, self.items = source, rows, items

    def __str__(self) -> str:
        return (
            f"source {self.source!r} has no usable example: {len(self.items)} of {self.rows} rows"
            f" tried, all bad. The last: {BadExample(*self.items[-1])}"
        )


class Quarantine:
    """Appends every bad item once to a JSON-lines file and stops a run that has too many.

    Items already in the file (from before a restart) are not written again. Where a run has
    several processes, each writes a file of its own, because appending together is not safe on
    every file system: `path` is process 0's, which `merge` completes from those of the others,
    <stem>-<process>.jsonl beside it.
    """

    def __init__(
        self,
        path: str | files.Path,
        max_share: float = 0.05,
        min_read: int = 256,
        process_index: int = 0,
    ):
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share is a share between 0 and 1, not {max_share}")
        self.path = files.as_path(path)
        self.max_share = max_share
        self.min_read = min_read
        self.read = self.bad = 0
        self._process = process_index
        self._own = self._part(process_index) if process_index else self.path
        self._seen = {item[:3] for item in read_quarantine(self._own)}
        self._last = ""

    def __len__(self) -> int:
        """Distinct items in this process's file."""
        return len(self._seen)

    def add(self, items: Iterable[BadItem], read: int) -> None:
        """`note` and `count` in one, where a process is on its own."""
        items = list(items)
        self.note(items)
        self.count(len(items), read)

    def note(self, items: Iterable[BadItem]) -> None:
        """Writes down the bad items of a batch that this process read.

        Raises RuntimeError when the file cannot be written.
        """
        new = {item[:3]: item for item in items if item[:3] not in self._seen}
        if new:
            self._append(new.values())
            self._seen.update(new)
            self._last = f" The last: {BadExample(*list(new.values())[-1])}."

    def count(self, bad: int, read: int) -> None:
        """Counts the examples of a batch, over all processes, so that all of them stop together.

        Raises ValueError when more than `max_share` of all examples read since the start were bad;
        the first `min_read` prove nothing.
        """
        self.read += read
        self.bad += bad
        if self.read >= self.min_read and self.bad > self.max_share * self.read:
            self.merge()
            raise ValueError(
                f"{self.bad} of {self.read} examples read were unusable, more than the limit of "
                f"{self.max_share:.1%}.{self._last} All are listed in {self.path}: repair the "
                "data, or raise config.data.max_bad_share."
            )

    def merge(self) -> None:
        """Process 0: takes over what the others have noted so far, also in an earlier start."""
        if self._process == 0:
            for part in sorted(self.path.parent.glob(f"{self.path.stem}-*.jsonl")):
                self.note(read_quarantine(part))

    def _part(self, process: int) -> files.Path:
        return self.path.with_name(f"{self.path.stem}-{process}.jsonl")

    def _append(self, items: Iterable[BadItem]) -> None:
        lines = "".join(_line(item) for item in items)
        try:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            files.append(self._own, lines)
        except OSError as error:
            reason = error.strerror or error
            raise RuntimeError(f"{self._own} cannot be written: {reason}") from error


def _line(item: BadItem) -> str:
    """JSON that is easy to read, unless it has what cannot be seen, or not be written."""
    line = json.dumps(item._asdict(), ensure_ascii=False)
    return (line if line.isprintable() else json.dumps(item._asdict())) + "\n"


def read_quarantine(path: str | files.Path) -> list[BadItem]:
    """The items of a quarantine file; none if it does not exist. Half-written lines are skipped."""
    path = files.as_path(path)
    items = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            item = BadItem(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue
        if all(isinstance(value, str) for value in item):
            items.append(item)
    return items
