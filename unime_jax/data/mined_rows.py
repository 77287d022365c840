"""Training rows joined with mined negatives, which are read where they stand when drawn."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unime_jax import files
from unime_jax.batch import Item
from unime_jax.data.embedding_store import item_id
from unime_jax.data.formats import Source
from unime_jax.data.heads import Head
from unime_jax.data.mined_table import Mined, open_mined, row_digest
from unime_jax.data.mining_corpus import open_corpus
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import MINED, target_of, to_example
from unime_jax.data.settings import MinedUse

SAMPLE = 16  # rows of a source that are compared before a run


class DataChangedError(ValueError):
    """The data are not those that negatives were mined for."""


@dataclasses.dataclass(frozen=True)
class MinedRows:
    """A source's rows with their mined negatives, in the order of the table."""

    name: str
    rows: Source
    mined: Mined
    pool: Sequence[tuple[str, Source]]  # names and rows of the sources that `Mined.places` numbers
    use: MinedUse

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = dict(self.rows[index])
        if self.use == "instead":
            for column in ("neg_text", "neg_image_path", "neg_image", "scores"):
                row[column] = []
        return row | {MINED: RowNegatives(self, index)}


@dataclasses.dataclass(frozen=True)
class RowNegatives:
    """The mined negatives of a row: `schema.MinedNegatives`."""

    source: MinedRows
    index: int

    @property
    def scores(self) -> tuple[float, ...]:
        row = self.source.mined.row(self.source.name, self.index)
        own = row["score"][row["number"] >= 0]
        return (float(row["positive"]), *own.tolist())

    def check(self, query: Item, positive: Item) -> None:
        """Raises DataChangedError if these are not the row's query and positive any more."""
        source = self.source
        digest = int(source.mined.row(source.name, self.index)["digest"])
        if digest and digest != row_digest(item_id(query), item_id(positive)):
            raise DataChangedError(_changed(source.mined, source.name, self.index))

    def read(self, number: int, max_pixels: int) -> Item:
        """A negative; DataChangedError if it is not what was mined."""
        mined = self.source.mined
        row = mined.row(self.source.name, self.index)
        candidate = int(row["number"][row["number"] >= 0][number])
        place, index, side = mined.places[candidate].tolist()
        name, rows = self.source.pool[place]
        try:
            item = target_of(name, rows[index], side, str(index), max_pixels)
        except BadExample as error:
            raise DataChangedError(f"{_changed(mined, name, index)} ({error})") from error
        if item_id(item) != bytes(mined.ids[candidate]):
            raise DataChangedError(_changed(mined, name, index))
        return item


def join(
    sources: Mapping[str, Source],
    used: Mapping[str, int],
    workdir: str,
    folder: files.Path,
    columns: Mapping[str, str],
    use: MinedUse,
) -> dict[str, MinedRows]:
    """The sources that are used, with the negatives of job mine's work directory.

    Args:
      used: how many rows, from its head, by source.
      folder: `data.folder`, that a corpus named apart is below.
      columns: `data.columns`, which the corpus has, too.

    Raises:
      FileNotFoundError: the corpus is gone.
      ValueError: there is no complete table, or the data have changed since, by numbers of rows and
        by a sample of them. Every other row is compared when it is read.
    """
    mined = open_mined(workdir)
    changed = [
        f"{name}: {mined.total[name]} rows -> {len(sources.get(name, ()))}"
        for name in mined.total
        if len(sources.get(name, ())) != mined.total[name]
    ]
    if changed:
        raise DataChangedError(
            f"the data have changed since {workdir} was mined; mine again:\n  "
            + "\n  ".join(changed)
        )
    if unknown := [name for name in used if name not in mined.rows]:
        raise ValueError(
            f"{workdir} has no negatives of the sources {', '.join(unknown)}, only of "
            f"{', '.join(mined.rows)}. Mine for them, or name those that are used by "
            "config.data.weights"
        )
    for name, rows in used.items():
        if rows > mined.rows[name]:
            raise ValueError(
                f"{workdir} has negatives of the first {mined.rows[name]} rows of source {name!r}, "
                f"but {rows} are trained on; set config.data.first_rows, or mine for all of them"
            )
    corpus = open_corpus(folder / mined.corpus, columns) if mined.corpus else {}
    if sorted(corpus) != list(mined.corpus_sources):
        raise DataChangedError(
            f"the corpus {folder / mined.corpus} has the sources {', '.join(sorted(corpus))}, but "
            f"{', '.join(mined.corpus_sources)} were mined; mine again"
        )
    pool = [(name, sources[name]) for name in mined.rows]
    pool += [(name, corpus[name]) for name in mined.corpus_sources]
    joined: dict[str, MinedRows] = {}
    for name, count in used.items():
        joined[name] = MinedRows(name, Head(sources[name], count), mined, pool, use)
        _check_sample(joined[name])
    return joined


def tables(rows: Mapping[str, Source]) -> dict[str, MinedUse]:
    """The mined tables that sources are joined with, by a hash of their content, and their use."""
    joined = [source for source in rows.values() if isinstance(source, MinedRows)]
    return {source.mined.content: source.use for source in joined}


def _check_sample(source: MinedRows) -> None:
    """Raises DataChangedError if one of a few rows, or its first negative, has changed."""
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int)).tolist():
        try:
            to_example(source.name, source[index], str(index), draw=lambda count: range(count)[-1:])
        except BadExample:  # which training leaves out
            continue


def _changed(mined: Mined, source: str, index: int) -> str:
    return (
        f"row {index} of source {source!r} is not what it was when {mined.folder} was mined: the "
        "data have changed since. Mine again, or go back to those data"
    )
