"""Training pairs: rows of any format and form in MMEB-train's columns, which `schema` reads."""

import contextlib
import dataclasses
import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from unime_jax import files
from unime_jax.batch import MediaKind
from unime_jax.data import formats, media_cells, row_forms
from unime_jax.data.formats import Rows, Source
from unime_jax.data.media_cells import Medium
from unime_jax.data.pair_cells import Cells, id_of, is_given, is_nan, joined, text_of
from unime_jax.data.quarantine import BadExample
from unime_jax.data.row_forms import Form, Side

_ITEM = ("text", "image", "images", "video", "videos")
_VIDEOS = frozenset(
    name for side in row_forms.MMEB_TRAIN.sides for name in (side.video, side.video_path)
)


def open_pairs(path: str | files.Path, columns: Mapping[str, str]) -> dict[str, Source]:
    """The pairs of each source of `formats.open_dataset`, in MMEB-train's columns.

    Args:
      columns: `data.columns`, names by key of `row_forms.KEYS`; empty: told by the names.

    Raises:
      FileNotFoundError: as `formats.open_dataset`.
      ValueError: as it, or columns in which no pair is recognised.
    """
    sources = formats.open_dataset(path)
    return {name: with_form(name, rows, columns) for name, rows in sources.items()}


def with_form(name: str, source: Source, chosen: Mapping[str, str]) -> Source:
    """A source's rows in MMEB-train's columns.

    One without `Rows.columns` (of TFDS, or a list) has them, unless `chosen` says otherwise.
    Raises ValueError as `row_forms.recognise`.
    """
    if not len(source):
        return source  # which the mixture refuses
    if not hasattr(source, "columns"):
        if not chosen and _VIDEOS.isdisjoint(source[0]):
            return source
        form = _recognised(name, tuple(source[0]), chosen, has_schema=True)
        return PairRows(name, source, form, ())
    rows: Rows = source  # type: ignore[assignment]
    columns = rows.columns
    form = _recognised(name, columns, chosen, has_schema=rows.has_schema)
    left_out = [column for column in columns if column not in form.columns]
    if left_out and rows.has_schema:
        logging.info("source %r: columns that are not read: %s", name, ", ".join(left_out))
    unseen = () if rows.has_schema else columns
    return PairRows(name, rows.only(form.columns), form, rows.folders, unseen, rows.is_nested)


def _recognised(
    name: str, columns: Sequence[str], chosen: Mapping[str, str], *, has_schema: bool
) -> Form:
    try:
        return row_forms.recognise(columns, chosen, has_schema=has_schema)
    except ValueError as error:
        raise ValueError(f"source {name!r}: {error}") from error


@dataclasses.dataclass(frozen=True)
class PairRows:
    """The rows of a source in MMEB-train's columns; files of media are read by who wants them.

    Clips stand among the images, after those of their item, each as a `ClipFile`. An index raises
    BadExample for a row that is no pair.
    """

    name: str
    rows: Source
    form: Form
    folders: tuple[str, ...]  # that paths of images and clips are below
    seen: tuple[str, ...] = ()  # the keys that the form was told from, if rows may have others
    is_nested: bool = True  # else lists are JSON in a text

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self.rows[index]
        row_id = getattr(self.rows, "row_id", None)
        id = ""
        try:
            id = id_of(_cell(row, self.form.id)) or (row_id(index) if row_id else "")
            return self._mapped(row, id)
        except ValueError as error:
            raise BadExample(self.name, id or str(index), "", str(error)) from error

    def _mapped(self, row: Mapping[str, Any], id: str) -> dict[str, Any]:
        form = self.form
        if self.seen:
            self._check_unseen(row)
        query = self._cells(row, form.query, "query")
        positive = self._cells(row, form.positive, "positive")
        if not positive.text and not positive.media:
            names = " and ".join(name for name in form.positive.columns[:2] if name in row)
            raise ValueError(f"no positive: {names or form.positive.columns[0]} is empty")
        scores = self._list(_cell(row, form.scores), (int, float, str))
        negatives = self._negatives(row, scored=len(scores) - 1)
        return {
            "id": id,
            "qry": query.text,
            "qry_image_path": [medium.path for medium in query.media],
            "qry_image": [medium.content for medium in query.media],
            "pos_text": positive.text,
            "pos_image_path": [medium.path for medium in positive.media],
            "pos_image": [medium.content for medium in positive.media],
            "neg_text": [cells.text for cells in negatives],
            "neg_image_path": [[medium.path for medium in cells.media] for cells in negatives],
            "neg_image": [[medium.content for medium in cells.media] for cells in negatives],
            "scores": scores,
            "score": _cell(row, form.score),
        }

    def _check_unseen(self, row: Mapping[str, Any]) -> None:
        """Raises ValueError for a key that would be read if the first rows had it."""
        for key in row.keys() - set(self.seen) - set(self.form.columns):
            if row_forms.is_known(key):
                raise ValueError(
                    f"{key!r} is a key that the first {formats.rows.SAMPLE} rows do not have, so"
                    " that it is not read; use the same keys in all rows, or config.data.columns"
                )

    def _cells(self, row: Mapping[str, Any], side: Side, what: str) -> Cells:
        """The text and media of a side that has one item."""
        cell = _cell(row, side.text)
        if isinstance(cell, list | tuple | np.ndarray):
            if len(cell) > 1:
                raise ValueError(f"{what}: {side.text} is a list of {len(cell)}; it must be one")
            cell = cell[0] if len(cell) else None
        cells = self._item(cell, row, what)
        given = [_cell(row, name) for name in (side.image, side.path, side.video, side.video_path)]
        return joined(cells, self._columns(given, row, what), what)

    def _negatives(self, row: Mapping[str, Any], scored: int) -> list[Cells]:
        """Those of the list columns, then those of the numbered ones.

        A place of a list stays, though it is empty, as scores go by places; an empty numbered
        column does if so many negatives are scored.
        """
        form, side = self.form, self.form.negatives
        names = (side.text, side.image, side.path, side.video, side.video_path)
        lists = [self._list(_cell(row, name), (str, dict, list)) for name in names]
        lengths = {len(values) for values in lists if values}
        if len(lengths) > 1:
            named = [name for name, values in zip(names, lists) if values]
            raise ValueError(
                f"negatives: {' and '.join(named)} have {sorted(lengths)} entries; they must have"
                " one for each negative"
            )
        result = []
        count = max(lengths, default=0)
        columns = [values or [None] * count for values in lists]
        for number, (cell, *given) in enumerate(zip(*columns, strict=True)):
            what = f"negative {number}"
            media = self._columns(given, row, what)
            result.append(joined(self._item(cell, row, what), media, what))
        numbered = [self._item(row.get(name), row, name) for name in form.numbered]
        if count + len(numbered) != scored:
            numbered = [cells for cells in numbered if cells.text or cells.media]
        return result + numbered

    def _item(self, cell: Any, row: Mapping[str, Any], what: str) -> Cells:
        """A text, or a dict of a text, images and clips."""
        if cell is None or is_nan(cell):
            return Cells()
        if isinstance(cell, str | bytes):
            return Cells(cell)
        if isinstance(cell, Mapping) and "bytes" in cell:  # a picture of Hugging Face datasets
            return Cells("", self._media(cell, None, row, what, "image"))
        if not isinstance(cell, Mapping):
            shown = json.dumps(cell, default=str)[:40]
            raise ValueError(
                f"{what}: it is a {type(cell).__name__}, {shown}; it must be a text, or"
                ' {"text": ..., "image": ..., "video": ...}'
            )
        for key in cell:
            if key not in _ITEM and cell[key] is not None:
                near = difflib.get_close_matches(key, _ITEM, n=1)
                hint = f'; did you mean "{near[0]}"?' if near else ""
                raise ValueError(
                    f'{what}: {key!r} is no key of an item ("text", "image", "video"){hint}'
                )
        text = cell.get("text")
        if text is not None and not isinstance(text, str | bytes):
            raise ValueError(f'{what}: its "text" is a {type(text).__name__}; it must be a text')
        given = [_either(cell, "image", what), None, _either(cell, "video", what), None]
        return Cells(text or "", self._columns(given, row, what))

    def _columns(
        self, cells: Sequence[Any], row: Mapping[str, Any], what: str
    ) -> tuple[Medium, ...]:
        """Images, then clips, of the cells of images, their paths, clips and their paths."""
        image, path, video, video_path = cells
        pictures = self._media(image, path, row, what, "image")
        return pictures + self._media(video, video_path, row, what, "clip")

    def _media(
        self, cell: Any, paths: Any, row: Mapping[str, Any], what: str, kind: MediaKind
    ) -> tuple[Medium, ...]:
        """Images or clips of a cell, or of a cell of contents beside one of paths."""
        contents, names = self._given(cell), self._given(paths)
        if contents and names and len(contents) != len(names):
            raise ValueError(f"{what}: {len(names)} {kind} paths, but {len(contents)} {kind}s")
        read = functools.partial(media_cells.medium, self.folders, row, what, kind)
        if not contents:
            return tuple(map(read, names))
        media = []
        for content, name in zip(contents, names or [None] * len(contents), strict=True):
            medium = read(content)
            media.append(medium if name is None else medium._replace(path=text_of(name)))
        return tuple(media)

    def _given(self, cell: Any) -> list[Any]:
        """The images or clips of a cell; none if all are empty."""
        values = self._list(cell, (str, dict))
        return values if any(is_given(value) for value in values) else []

    def _list(self, cell: Any, kinds: tuple[type, ...]) -> list[Any]:
        """The values of a list's cell; of another value, that alone; of an empty one, none.

        Args:
          kinds: of values that a list in JSON has, where cells are texts; else it is a text.
        """
        if cell is None or is_nan(cell) or (isinstance(cell, str | bytes) and not cell):
            return []
        if not self.is_nested and isinstance(cell, str) and cell.lstrip().startswith("["):
            with contextlib.suppress(ValueError, RecursionError):
                values = json.loads(cell)
                if all(isinstance(value, kinds) for value in values):
                    return list(values)
        return list(cell) if isinstance(cell, list | tuple | np.ndarray) else [cell]


def _cell(row: Mapping[str, Any], name: str) -> Any:
    return row.get(name) if name else None


def _either(cell: Mapping[str, Any], name: str, what: str) -> Any:
    """The value of a key or of its plural."""
    if cell.get(name) is not None and cell.get(f"{name}s") is not None:
        raise ValueError(f'{what}: it has "{name}" and "{name}s"; give one of them')
    return cell.get(f"{name}s") if cell.get(name) is None else cell[name]
