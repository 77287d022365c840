"""MMEB protocol: each row's query among its own candidates, the gold first.

Models are left out (an `encode` function is handed in), so are averages (scores.py) and drawing
(report/page.py). Evaluation data must be complete: nothing is skipped, every gap is an error.
"""

import array
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32, Int64

from unime_jax.data.formats import Source
from unime_jax.evaluation import ranking
from unime_jax.evaluation.encoding.item_table import (
    Encode,
    Images,
    ItemTable,
    Key,
    encode_table,
    paths_of,
    text_of,
)
from unime_jax.evaluation.ranking import DatasetResult

COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
QUERY_CLIPS, TARGET_CLIPS = "qry_video_path", "tgt_video_path"  # that a row may have besides
RIGHT = "right"  # likewise: how many of the first candidates are right
PATH_COLUMNS = ("qry_img_path", "tgt_img_path", QUERY_CLIPS, TARGET_CLIPS)


@dataclasses.dataclass(frozen=True)
class Task:
    """One dataset of MMEB.

    A row has `qry_text`, `qry_img_path`, `tgt_text` [K], `tgt_img_path` [K] with the gold at index
    0, and optionally `id`; K may differ by row. An item's path may be a list, of several images.
    Paths of clips stand in `qry_video_path` and `tgt_video_path` [K], which may be left out. Where
    several candidates are right, they come first, and `right` says how many they are.
    """

    name: str
    rows: Source
    limit: int = 0  # the first rows; 0: all
    kind: Literal["mmeb"] = "mmeb"

    def open(self, images: Images) -> "OpenTask":
        """Reads all rows; see `tasks.Task`."""
        count = min(self.limit or len(self.rows), len(self.rows))
        if not count:
            raise ValueError(f"{self} has no rows; leave it out or fetch its data again")
        ids: list[str] = []

        def where(row: int) -> str:
            known = f" (id {ids[row]})" if row < len(ids) else ""
            return f"{self}, row {row}{known}"

        table = ItemTable(images, where)
        query, candidates = array.array("i"), array.array("i")
        offsets, right = np.zeros(count + 1, np.int64), np.ones(count, np.int32)
        for number in range(count):
            row = self.rows[number]
            query_key, candidate_keys = _keys(row, where(number))
            ids.append(text_of(row.get("id", number)))
            query.append(table.add(query_key, number))
            candidates.extend([table.add(key, number) for key in candidate_keys])
            offsets[number + 1] = len(candidates)
            right[number] = _right(row, len(candidate_keys), where(number))
        return OpenTask(
            self,
            ids,
            table,
            np.frombuffer(query, np.int32),
            np.frombuffer(candidates, np.int32),
            offsets,
            right,
        )

    def __str__(self) -> str:
        return f"dataset {self.name!r}"


@dataclasses.dataclass(frozen=True, eq=False)
class OpenTask:
    """Rows as numbers in a table of distinct items."""

    task: Task
    ids: Sequence[str]
    items: ItemTable
    query: Int32[np.ndarray, " rows"]
    candidates: Int32[np.ndarray, " M"]  # of all rows, one after another
    offsets: Int64[np.ndarray, " rows+1"]  # where each row's begin
    right: Int32[np.ndarray, " rows"]  # of each row's first

    def encode(self, encode: Encode) -> Float32[np.ndarray, "n D"]:
        """Unit vectors; they are normalised here, as the original does."""
        return encode_table(str(self.task), self.items, encode)

    def score(self, vectors: Float32[np.ndarray, "n D"]) -> DatasetResult:
        """Ranks each row's candidates by cosine with its query (VLM2Vec v1 `eval.py`)."""
        return ranking.rank(
            self.task.name,
            self.ids,
            self.items,
            self.query,
            self.candidates,
            self.offsets,
            self.right,
            vectors,
        )


def _keys(row: Mapping[str, Any], where: str) -> tuple[Key, list[Key]]:
    """The query and the candidates of a row."""
    if missing := [column for column in COLUMNS if column not in row]:
        raise ValueError(f"{where}: no column {', '.join(missing)}; MMEB-eval rows have {COLUMNS}")
    texts, paths = row["tgt_text"], row["tgt_img_path"]
    if isinstance(texts, str | bytes) or isinstance(paths, str | bytes):
        raise ValueError(f"{where}: tgt_text and tgt_img_path must be lists, gold first")
    if len(texts) != len(paths):
        raise ValueError(f"{where}: {len(texts)} tgt_text but {len(paths)} tgt_img_path")
    if len(texts) == 0:
        raise ValueError(f"{where}: no candidates; index 0 must hold the gold")
    given = row.get(TARGET_CLIPS)
    clips = [None] * len(texts) if given is None or not len(given) else given
    if isinstance(clips, str | bytes) or len(clips) != len(texts):
        raise ValueError(f"{where}: {TARGET_CLIPS} must be a list as long as tgt_text")
    try:
        query = text_of(row["qry_text"]), paths_of(row["qry_img_path"], row.get(QUERY_CLIPS))
        sides = zip(texts, paths, clips, strict=True)
        return query, [(text_of(text), paths_of(path, clip)) for text, path, clip in sides]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _right(row: Mapping[str, Any], candidates: int, where: str) -> int:
    """How many of a row's first candidates are right."""
    right = row.get(RIGHT, 1)
    if isinstance(right, bool) or not isinstance(right, int | np.integer):
        raise ValueError(f"{where}: {RIGHT} is {right!r}, not how many first candidates are right")
    if not 1 <= right <= candidates:
        raise ValueError(f"{where}: {RIGHT} is {right}, and there are {candidates} candidates")
    return int(right)
