"""Clustering: how far k-means' clusters of all items of a set agree with their labels.

The protocol is that of mteb's image clustering, for texts and for items with both, too: mini-batch
k-means of scikit-learn over unit vectors in the order of the rows, once, with as many clusters as
there are labels. Its main score there, "nmi", is the V-measure.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32

from unime_jax.data.formats import Source
from unime_jax.evaluation.benchmarks.prepared_set import PreparedSet, TaskSettings
from unime_jax.evaluation.encoding.item_table import (
    Encode,
    Images,
    ItemTable,
    Key,
    encode_table,
    paths_of,
    text_of,
)
from unime_jax.evaluation.tasks.captions import CAPTION

BATCH, SEED = 500, 42  # of k-means, as in mteb


@dataclasses.dataclass(frozen=True)
class ClusteringResult:
    """Agreement of clusters with labels; `v_measure` is in percent."""

    name: str
    v_measure: float
    rows: int
    labels: int


@dataclasses.dataclass(frozen=True)
class Task:
    """One set; a row has `text` or `image`, or both, and `label`, a text or a whole number."""

    name: str
    rows: Source
    image_text: str  # of the items of an image without a text, with MMEB's `<|image_1|>`
    text_only: str = CAPTION  # of those of a text without an image, for which `{caption}` stands
    limit: int = 0  # the first rows; 0: all
    kind: Literal["clustering"] = "clustering"

    def __post_init__(self) -> None:
        if CAPTION not in self.text_only:
            raise ValueError(f"text_only {self.text_only!r} has no {CAPTION} to be replaced")

    def open(self, images: Images) -> "OpenTask":
        """Reads all rows; see `tasks.Task`."""
        count = min(self.limit or len(self.rows), len(self.rows))
        table = ItemTable(images, self._where)
        numbers: dict[str, int] = {}  # by label
        items, labels = np.zeros((2, count), np.int32)
        for row in range(count):
            key, label = self._key_and_label(self.rows[row], row)
            items[row] = table.add(key, row)
            labels[row] = numbers.setdefault(label, len(numbers))
        if len(numbers) < 2:
            raise ValueError(
                f"{self}: {count} rows have {len(numbers)} labels, and clusters need at least two;"
                " leave it out, or raise evaluation.limit"
            )
        return OpenTask(self, table, items, labels)

    def _key_and_label(self, row: Mapping[str, Any], number: int) -> tuple[Key, str]:
        try:
            paths = paths_of(row.get("image"))
        except ValueError as error:
            raise ValueError(f"{self._where(number)}: {error}") from error
        text, label = text_of(row.get("text")), row.get("label")
        if not text and not paths:
            raise ValueError(f"{self._where(number)}: neither text nor image")
        if isinstance(label, bool) or not isinstance(label, str | bytes | int | np.integer):
            raise ValueError(
                f"{self._where(number)}: the label is {label!r}; it must be a text or a whole"
                " number"
            )
        if not paths:
            text = self.text_only.replace(CAPTION, text)
        return (text or self.image_text, paths), text_of(label)

    def _where(self, row: int) -> str:
        return f"{self}, row {row}"

    def __str__(self) -> str:
        return f"clustering {self.name!r}"


@dataclasses.dataclass(frozen=True, eq=False)
class OpenTask:
    """The item and the label of each row, as numbers."""

    task: Task
    items: ItemTable
    row_items: Int32[np.ndarray, " rows"]  # in the table of distinct items
    labels: Int32[np.ndarray, " rows"]

    def encode(self, encode: Encode) -> Float32[np.ndarray, "n D"]:
        """Unit vectors."""
        return encode_table(str(self.task), self.items, encode)

    def score(self, vectors: Float32[np.ndarray, "n D"]) -> ClusteringResult:
        """Clusters all rows; equal items count as often as they come."""
        from sklearn.cluster import MiniBatchKMeans  # slow to import
        from sklearn.metrics import v_measure_score

        count = int(self.labels.max()) + 1
        means = MiniBatchKMeans(count, batch_size=BATCH, n_init="auto", random_state=SEED)
        clusters = means.fit(vectors[self.row_items]).labels_
        measure = 100.0 * float(v_measure_score(self.labels, clusters))
        return ClusteringResult(self.task.name, measure, len(self.labels), count)


def task_of(prepared: PreparedSet, subset: str, settings: TaskSettings) -> Task:
    """The task of a prepared set's subset; see `benchmark_sets`."""
    return Task(
        prepared.task_name(subset),
        prepared.placed(subset, ("image",)),
        settings.image_prompt,
        settings.caption_prompt,
        settings.limit,
    )
