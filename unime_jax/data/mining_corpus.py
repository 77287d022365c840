"""A corpus of candidates: items a row, targets of pairs, or a text a line."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from unime_jax import files
from unime_jax.batch import Item
from unime_jax.data import formats, row_forms
from unime_jax.data.formats import Source
from unime_jax.data.items import open_lines
from unime_jax.data.pairs import PairRows, with_form
from unime_jax.data.row_forms import Form, Side
from unime_jax.data.schema import target_of


@dataclasses.dataclass(frozen=True)
class Documents:
    """Rows whose positive is a candidate: `items.Corpus`."""

    name: str
    rows: Source

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Sequence[Item]:
        """Its item. Raises BadExample if it cannot be used."""
        return (target_of(self.name, self.rows[row], 0, str(row)),)


@dataclasses.dataclass(frozen=True)
class TextRows:
    """Lines of a text file as rows in MMEB-train's columns."""

    lines: Sequence[str]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"pos_text": self.lines[index]}


def open_corpus(path: files.Path, columns: Mapping[str, str]) -> dict[str, Source]:
    """The candidates of each source of a path, as positives of rows in MMEB-train's columns.

    A .txt file has a text a line. Rows with a text (`text`) or an image (`image`, `file_name` and
    so on) and no query are items; others are pairs, whose positives are candidates.

    Args:
      columns: of pairs, `data.columns`.

    Raises:
      FileNotFoundError: there is nothing.
      ValueError: neither items nor pairs are recognised.
    """
    if path.suffix == ".txt":
        return {path.stem: TextRows(open_lines(path).lines)}
    return {
        name: _items(name, rows) or with_form(name, rows, columns)
        for name, rows in formats.open_dataset(path).items()
    }


def _items(name: str, source: Source) -> Source | None:
    """A source whose rows are items; None if they are pairs."""
    if not hasattr(source, "columns"):
        return None
    rows: formats.Rows = source  # type: ignore[assignment]
    texts = [column for column in ("text",) if column in rows.columns]
    images = [column for column in row_forms.PICTURES if column in rows.columns]
    pairs = {*row_forms.NAMES["query"], *row_forms.NAMES["positive"], "qry", "caption"}
    if pairs & set(rows.columns) or not texts and not images:
        return None
    if "title" in rows.columns:
        raise ValueError(
            f"source {name!r}: a title beside the text would be left out; join both in text"
        )
    if len(images) > 1:
        raise ValueError(
            f"source {name!r}: {' and '.join(images)} could both be the image; keep one of them"
        )
    side = Side("".join(texts), "".join(images))
    form = Form(query=Side(), positive=side)
    return PairRows(name, rows.only(form.columns), form, rows.folders, (), rows.is_nested)
