"""SugarCrepe: does an image lie closer to its caption than to a minimally changed wrong one?

Prompts are arguments: a family embeds captions the way it was trained.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32

from unime_jax.data.formats import Source
from unime_jax.evaluation import ranking
from unime_jax.evaluation.item_table import (
    Encode,
    Images,
    ItemTable,
    Key,
    encode_table,
    paths_of,
    text_of,
)

COLUMNS = ("image_path", "caption", "negative_caption")


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetResult:
    """Cosines of one subset's images with their caption and with its negative."""

    name: str
    caption_score: Float32[np.ndarray, " rows"]
    negative_score: Float32[np.ndarray, " rows"]

    @property
    def accuracy(self) -> float:
        """Percent of rows whose caption scores strictly higher; a tie is wrong."""
        return 100.0 * float(np.mean(self.caption_score > self.negative_score))


@dataclasses.dataclass(frozen=True)
class Task:
    """One subset; a row has `image_path`, `caption` and `negative_caption`."""

    name: str
    rows: Source
    image_text: str  # of the image items, with MMEB's `<|image_1|>`
    caption_text: str = "{caption}"  # of a caption item; `{caption}` stands for the caption
    limit: int = 0  # the first rows; 0: all
    kind: Literal["composition"] = "composition"

    def __post_init__(self) -> None:
        if "{caption}" not in self.caption_text:
            raise ValueError(
                f"caption_text {self.caption_text!r} has no {{caption}} to be replaced"
            )

    def __len__(self) -> int:
        """Rows that are scored."""
        return min(self.limit or len(self.rows), len(self.rows))

    def open(self, images: Images) -> "OpenTask":
        """Reads all rows; see `tasks.Task`."""
        if not len(self):
            raise ValueError(f"{self} has no rows; leave it out or fetch its data again")
        table = ItemTable(images, self._where)
        triples = [
            [table.add(key, number) for key in self._keys(self.rows[number], number)]
            for number in range(len(self))
        ]
        return OpenTask(self, table, np.array(triples, np.int32))

    def _keys(self, row: Mapping[str, Any], number: int) -> tuple[Key, Key, Key]:
        """The image, its caption and the negative."""
        try:
            paths = paths_of(row.get("image_path"))
        except ValueError as error:
            raise ValueError(f"{self._where(number)}: {error}") from error
        caption, negative = text_of(row.get("caption")), text_of(row.get("negative_caption"))
        given = zip(COLUMNS, (paths, caption, negative), strict=True)
        if missing := [column for column, value in given if not value]:
            raise ValueError(f"{self._where(number)}: {', '.join(missing)} is missing or empty")
        return (
            (self.image_text, paths),
            (self.caption_text.replace("{caption}", caption), ""),
            (self.caption_text.replace("{caption}", negative), ""),
        )

    def _where(self, row: int) -> str:
        return f"{self}, row {row}"

    def __str__(self) -> str:
        return f"subset {self.name!r}"


@dataclasses.dataclass(frozen=True, eq=False)
class OpenTask:
    """Image, caption and negative of each row as numbers in a table of distinct items."""

    task: Task
    items: ItemTable
    triples: Int32[np.ndarray, "rows 3"]

    def encode(self, encode: Encode) -> Float32[np.ndarray, "n D"]:
        """Unit vectors."""
        return encode_table(str(self.task), self.items, encode)

    def score(self, vectors: Float32[np.ndarray, "n D"]) -> SubsetResult:
        """Cosines of each image with its two captions."""
        offsets = 2 * np.arange(len(self.triples) + 1)
        pairs = np.ascontiguousarray(self.triples[:, 1:]).ravel()
        scores = ranking.cosines(self.triples[:, 0], pairs, offsets, vectors).reshape(-1, 2)
        return SubsetResult(self.task.name, scores[:, 0].copy(), scores[:, 1].copy())


def kind_means(percent: Mapping[str, float]) -> dict[str, float]:
    """Unweighted means over the subsets of a kind: replace_obj, replace_att, ... -> replace."""
    kinds: dict[str, list[float]] = {}
    for name, value in percent.items():
        kinds.setdefault(name.partition("_")[0], []).append(value)
    return {kind: sum(values) / len(values) for kind, values in kinds.items()}
