"""Sentences from files to a TFDS folder in MMEB-train's columns, a part of them held out.

python -m data_pipelines.texts --input=nli_for_simcse.csv --folder=/data/nli --test_rows=1000
"""

import collections
import csv
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from data_pipelines.preparing import preparing

COLUMNS = ("sent0", "sent1", "hard_neg")  # of nli_for_simcse.csv


class Triple(NamedTuple):
    """A sentence, one that follows from it, and one that contradicts it; "": there is none."""

    sent0: str
    sent1: str = ""
    hard_neg: str = ""


def prepare(inputs: Sequence[str | os.PathLike], folder: str | os.PathLike, test_rows: int) -> None:
    """Builds <folder>/1.0.0 with the splits train and test; does nothing if it is there.

    Rows that share their first sentence stay on one side, so that no test sentence was trained on
    as such.

    Args:
      inputs: .csv files with SimCSE's columns sent0, sent1 and hard_neg (the last two may be
        missing), or .txt files with a sentence a line.
      test_rows: about how many rows are held out; more only by rows of the same first sentence.

    Raises:
      ValueError: a file of another form, a row without its first sentence, or too few rows.
    """
    rows = [row for file in inputs for row in read(Path(file))]
    write(folder, *split(rows, test_rows))


def split(rows: Sequence[Triple], test_rows: int) -> tuple[list[Triple], list[Triple]]:
    """Rows to train on and rows held out, whichever way they were ordered."""
    count = collections.Counter(row.sent0 for row in rows)
    held_out: set[str] = set()
    held = 0
    for sentence in sorted(count, key=_hash):
        if held >= test_rows:
            break
        held_out.add(sentence)
        held += count[sentence]
    if held >= len(rows):
        raise ValueError(
            f"{len(rows)} rows with {len(count)} different first sentences: to hold out "
            f"{test_rows} of them would leave none to train on"
        )
    train = [row for row in rows if row.sent0 not in held_out]
    return train, [row for row in rows if row.sent0 in held_out]


def read(file: Path) -> Iterator[Triple]:
    """The rows of one file; blank lines of a text file are left out."""
    if file.suffix == ".txt":
        with file.open(encoding="utf-8") as lines:
            yield from (Triple(line.strip()) for line in lines if line.strip())
        return
    if file.suffix != ".csv":
        raise ValueError(f"{file}: neither .csv nor .txt")
    with file.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines)
        if "sent0" not in (table.fieldnames or ()):
            raise ValueError(f"{file}: no column sent0 among {table.fieldnames}")
        for number, row in enumerate(table, 1):
            triple = Triple(*((row.get(name) or "").strip() for name in COLUMNS))
            if not triple.sent0:
                raise ValueError(f"{file}, row {number}: sent0 is empty")
            yield triple


def write(folder: str | os.PathLike, train: Sequence[Triple], test: Sequence[Triple]) -> None:
    """Builds the folder, unless it is there; it appears only when it is whole."""
    folder = Path(folder).expanduser()
    if (folder / str(Texts.VERSION)).is_dir():
        return
    with preparing(folder), tempfile.TemporaryDirectory() as nothing_is_downloaded:
        builder = Texts(folder, {"train": train, "test": test})
        builder.download_and_prepare(download_dir=nothing_is_downloaded)


class Texts(tfds.core.GeneratorBasedBuilder):
    """Sentences in MMEB-train's columns; sent0 stands for sent1 where there is none."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[Any]] = []

    def __init__(self, folder: Path, splits: dict[str, Sequence[Triple]]):
        self.splits = splits
        self.name = folder.name
        super().__init__(file_format="array_record", data_dir=folder.parent)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {"id": text, "qry": text, "pos_text": text}
        features["neg_text"] = tfds.features.Sequence(text)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Sentences for textual distillation.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {name: _rows(name, rows) for name, rows in self.splits.items() if rows}

    def _generate_examples(self):
        """Not called: every split has a generator of its own."""


def _rows(split: str, rows: Iterable[Triple]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(rows):
        yield (
            number,
            {
                "id": f"{split}-{number:06d}",
                "qry": row.sent0,
                "pos_text": row.sent1 or row.sent0,
                "neg_text": [row.hard_neg] if row.hard_neg else [],
            },
        )


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
