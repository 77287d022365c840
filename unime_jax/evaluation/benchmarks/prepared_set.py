"""A prepared benchmark set: its folder as set.json describes it, and rows with placed images."""

import dataclasses
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unime_jax import files
from unime_jax.data.formats import Source, fingerprint, open_dataset
from unime_jax.data.quarantine import BadExample
from unime_jax.data.settings import Instructions
from unime_jax.evaluation.encoding.item_table import Images, text_of
from unime_jax.evaluation.encoding.stored_images import open_images

FILE = "set.json"  # written last, so that a set with it is whole
PLACE = "benchmark://"  # begins the paths of a set's images in a table: no path of a file does
SPLIT = "/test"  # of the hub's parquet files, `<subset>/test`
TEXTS = ("name", "kind", "rows", "images", "source", "revision")


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """Settings of an evaluation that a task of a prepared set is made with."""

    image_prompt: str  # the text beside an image that is embedded without one of its own
    caption_prompt: str  # of a caption; `{caption}` stands for the caption
    video_prompt: str  # the text beside a clip that is embedded without one of its own
    limit: int  # the first rows; 0: all
    instructions: Instructions = "data"  # of MMEB's datasets, visual documents included


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedSet:
    """A benchmark set on disk, of which no row is read yet.

    `record` is set.json, with the keys of its kind; `subsets` are the sources of its rows by name;
    `images` is the folder that image paths of the rows are relative to.
    """

    folder: files.Path
    record: Mapping[str, Any]
    subsets: Mapping[str, Source]
    images: files.Path

    @property
    def name(self) -> str:
        return str(self.record["name"])

    @property
    def kind(self) -> str:
        return str(self.record["kind"])

    @property
    def rows(self) -> files.Path:
        """The file or glob of the rows."""
        return self.folder / self.record["rows"]

    @property
    def place(self) -> str:
        """Beginning of its images' paths in a table of items."""
        return f"{PLACE}{urllib.parse.quote(self.name, safe='')}/"

    def task_name(self, subset: str) -> str:
        """Name of a subset's task: that of the set, where it has no other subset."""
        return self.name if len(self.subsets) == 1 else f"{self.name}/{subset.removesuffix(SPLIT)}"

    def placed(self, subset: str, columns: Sequence[str]) -> "PlacedRows":
        """The rows of a subset, whose image paths in `columns` say which set they are of.

        Raises:
          ValueError: there are no rows, or the first image of a column in the first is not there.
        """
        rows = PlacedRows(self, subset, tuple(columns))
        if not len(rows):
            raise ValueError(f"{subset!r} has no rows")
        read, (row, where) = open_images(self.images), (rows.unplaced(0), rows.where(0))
        for path in [path for column in columns for path in _paths(row.get(column))[:1]]:
            try:
                read(path)
            except (KeyError, OSError, ValueError) as error:
                raise ValueError(
                    f"{where}: image {path!r} cannot be read from {self.images}: {error}"
                ) from error
        return rows

    def words(self, key: str, chosen: Instructions, otherwise: str) -> str:
        """Words of its own that set.json has under `key`: a text, or one for each instructions.

        Raises:
          ValueError: there are none for the chosen instructions.
        """
        words = self.record.get(key, otherwise)
        own = words.get(chosen) if isinstance(words, Mapping) else words
        if not isinstance(own, str):
            raise ValueError(
                f"{self.folder / FILE} has no {key} for config.evaluation.instructions="
                f"{chosen!r}, but {words!r}: choose others, or prepare the set again"
            )
        return own

    def provenance(self) -> list[Any]:
        """What its results depend on: set.json, and a hash of its rows."""
        return [dict(self.record), fingerprint(self.rows)]


@dataclasses.dataclass(frozen=True, eq=False)
class PlacedRows:
    """Rows of one subset of a set, the paths in some columns led by the set's `place`."""

    prepared: PreparedSet
    subset: str
    columns: tuple[str, ...]  # paths of images: a text, None, or lists of them

    def __len__(self) -> int:
        return len(self.prepared.subsets[self.subset])

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = dict(self.unplaced(index))
        return row | {c: self._placed(row[c]) for c in self.columns if c in row}

    def unplaced(self, index: int) -> Mapping[str, Any]:
        """The row as it is on disk."""
        try:
            return self.prepared.subsets[self.subset][index]
        except BadExample as error:
            raise ValueError(f"{self.where(index)}: {error.item.reason}") from error

    def where(self, index: int) -> str:
        return f"benchmark set {self.prepared.task_name(self.subset)!r}, row {index}"

    def _placed(self, cell: Any) -> Any:
        if isinstance(cell, list | tuple | np.ndarray):
            return [self._placed(inner) for inner in cell]
        if not isinstance(cell, str | bytes):
            return cell
        path = text_of(cell)
        return self.prepared.place + path if path else ""


def open_set(folder: files.Path) -> PreparedSet:
    """The set in a folder, which is named as the set is.

    Raises:
      FileNotFoundError: it has no set.json, or no rows.
      ValueError: set.json is not whole or of another set, its rows are not as many as it says, or
        its images are gone.
    """
    try:
        record = files.read_object(folder / FILE)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} has no {FILE}, which is written last: prepare the set by "
            "python -m data_pipelines.benchmarks"
        ) from error
    if wrong := [key for key in TEXTS if not isinstance(record.get(key), str)]:
        raise ValueError(f"{folder / FILE} has no text for {', '.join(wrong)}: prepare it again")
    if record["name"] != folder.name:
        raise ValueError(
            f"{folder / FILE} is of the set {record['name']!r}, not of {folder.name!r}: a set's "
            "folder has its name"
        )
    images = folder / record["images"]  # an absolute path stays as it is
    if not images.is_dir():
        raise ValueError(f"{folder}: its images are gone; there is no folder {images}")
    prepared = PreparedSet(folder, record, open_dataset(folder / record["rows"]), images)
    counts = {name.removesuffix(SPLIT): len(rows) for name, rows in prepared.subsets.items()}
    if counts != record.get("counts"):
        raise ValueError(
            f"{prepared.rows} has {_counted(counts)}, but {FILE} says "
            f"{_counted(record.get('counts'))}: prepare the set again"
        )
    return prepared


def images_of(sets: Sequence[PreparedSet]) -> Images:
    """Encoded bytes of the images of several sets, by the paths of `PlacedRows`."""
    readers = {urllib.parse.quote(s.name, safe=""): open_images(s.images) for s in sets}

    def read(path: str) -> bytes:
        name, _, own = path.removeprefix(PLACE).partition("/")
        return readers[name](own)

    return read


def _paths(cell: Any) -> list[str]:
    """Paths of a cell of any depth."""
    if isinstance(cell, list | tuple | np.ndarray):
        return [path for inner in cell for path in _paths(inner)]
    return [text_of(cell)] if isinstance(cell, str | bytes) and cell else []


def _counted(counts: Any) -> str:
    if not isinstance(counts, Mapping):
        return f"{counts!r} for its counts"
    return ", ".join(f"{count} rows of {name!r}" for name, count in counts.items()) or "no rows"
