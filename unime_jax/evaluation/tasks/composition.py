"""Composition: which captions lie closer to which images, where few words or two images differ.

Rows have one or more images and captions; a rule says what is right (composition_rules.py). Prompts
are arguments: a family embeds captions the way it was trained.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int32

from unime_jax.data.formats import Source
from unime_jax.evaluation import ranking
from unime_jax.evaluation.benchmarks.composition_rules import RULES, RuleResult, Score, named_scores
from unime_jax.evaluation.benchmarks.prepared_set import FILE, PreparedSet, TaskSettings
from unime_jax.evaluation.encoding.item_table import (
    Encode,
    Images,
    ItemTable,
    Key,
    encode_table,
    paths_of,
    text_of,
)

COLUMNS = ("image_path", "caption", "negative_caption")
SUGARCREPE = "sugarcrepe"  # the rule of rows in these columns


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
    """One subset of rows.

    A row has `image_path`, `caption` and `negative_caption`, or lists `images` and `captions`, as
    many as its rule takes, of which those of the same number belong together, and optionally
    `group`. Where the rule asks for labels, `right` and `counted` are lists of numbers of captions.

    Attributes:
      set: of a prepared benchmark; "": of subsets that are scored each by itself.
      subset: its name in the set.
    """

    name: str
    rows: Source
    image_text: str  # of the image items, with MMEB's `<|image_1|>`
    caption_text: str = "{caption}"  # of a caption item; `{caption}` stands for the caption
    limit: int = 0  # the first rows; 0: all
    rule: str = SUGARCREPE
    set: str = ""
    subset: str = ""
    kind: Literal["composition"] = "composition"

    def __post_init__(self) -> None:
        if "{caption}" not in self.caption_text:
            raise ValueError(
                f"caption_text {self.caption_text!r} has no {{caption}} to be replaced"
            )
        if self.rule not in RULES:
            raise ValueError(
                f"{self}: no rule {self.rule!r} of composition; there are {', '.join(RULES)}"
            )

    def __len__(self) -> int:
        """Rows that are scored."""
        return min(self.limit or len(self.rows), len(self.rows))

    def open(self, images: Images) -> "OpenTask":
        """Reads all rows; see `tasks.Task`."""
        if not len(self):
            raise ValueError(f"{self} has no rows; leave it out or fetch its data again")
        table = ItemTable(images, self._where)
        pictures: list[list[int]] = []
        captions: list[list[int]] = []
        groups: list[str] = []
        labels: list[tuple[np.ndarray, np.ndarray]] = []
        for number in range(len(self)):
            row = self.rows[number]
            keys = self._keys(row, number)
            self._check_counts(keys, len(captions[0]) if captions else 0, number)
            pictures.append([table.add(key, number) for key in keys[0]])
            captions.append([table.add(key, number) for key in keys[1]])
            groups.append(text_of(row.get("group")))
            if RULES[self.rule].labelled:
                count = len(captions[0])
                if captions[number] != captions[0]:
                    raise ValueError(
                        f"{self._where(number)}: other captions than in row 0; by rule"
                        f" {self.rule!r} they are the labels of all images"
                    )
                marks = [self._marks(row, name, count, number) for name in ("right", "counted")]
                labels.append((marks[0], marks[1]))
        right, counted = (np.array(part) for part in zip(*labels)) if labels else (None, None)
        return OpenTask(
            self,
            table,
            np.array(pictures, np.int32),
            np.array(captions, np.int32),
            tuple(groups),
            right,
            counted,
        )

    def _keys(self, row: Mapping[str, Any], number: int) -> tuple[list[Key], list[Key]]:
        """The images and the captions of a row; ValueError for one that is missing or empty."""
        is_triple = "images" not in row and "captions" not in row
        try:
            if is_triple:
                paths = [paths_of(row.get("image_path"))]
                texts = [text_of(row.get("caption")), text_of(row.get("negative_caption"))]
            else:
                paths = [paths_of(path) for path in _listed(row, "images")]
                texts = [text_of(text) for text in _listed(row, "captions")]
        except ValueError as error:
            raise ValueError(f"{self._where(number)}: {error}") from error
        if is_triple:
            names: Iterable[str] = COLUMNS
        else:
            names = [f"image {n + 1}" for n in range(len(paths))]
            names += [f"caption {n + 1}" for n in range(len(texts))]
        given = zip(names, [*paths, *texts], strict=True)
        if missing := [name for name, value in given if not value]:
            raise ValueError(f"{self._where(number)}: {', '.join(missing)} is missing or empty")
        return (
            [(self.image_text, path) for path in paths],
            [(self.caption_text.replace("{caption}", text), "") for text in texts],
        )

    def _marks(
        self, row: Mapping[str, Any], column: str, count: int, number: int
    ) -> Bool[np.ndarray, " captions"]:
        """True at the numbers that a column lists."""
        marks = np.zeros(count, bool)
        try:
            marks[np.array(_listed(row, column), np.intp)] = True
        except (ValueError, IndexError) as error:
            raise ValueError(f"{self._where(number)}: {column}: {error}") from error
        return marks

    def _check_counts(self, keys: tuple[list[Key], list[Key]], captions: int, number: int) -> None:
        """Raises ValueError where the rule takes another number of images or captions.

        `captions`: of the first row; 0: this is the first.
        """
        rule = RULES[self.rule]
        expected = rule.captions or captions
        if len(keys[0]) != rule.images:
            short = f"{len(keys[0])} images, expected {rule.images} by rule {self.rule!r}"
        elif expected and len(keys[1]) != expected:
            short = f"{len(keys[1])} captions, expected {expected} by rule {self.rule!r}"
        elif len(keys[1]) < 2:
            short = "a single caption has no other to be compared with"
        else:
            return
        raise ValueError(f"{self._where(number)}: {short}")

    def _where(self, row: int) -> str:
        return f"{self}, row {row}"

    def __str__(self) -> str:
        return f"subset {self.name!r}"


@dataclasses.dataclass(frozen=True, eq=False)
class OpenTask:
    """Images and captions of each row as numbers in a table of distinct items."""

    task: Task
    items: ItemTable
    images: Int32[np.ndarray, "rows images"]
    captions: Int32[np.ndarray, "rows captions"]
    groups: tuple[str, ...]  # of each row
    right: Bool[np.ndarray, "rows captions"] | None  # of a rule that asks for labels
    counted: Bool[np.ndarray, "rows captions"] | None

    def encode(self, encode: Encode) -> Float32[np.ndarray, "n D"]:
        """Unit vectors."""
        return encode_table(str(self.task), self.items, encode)

    def score(self, vectors: Float32[np.ndarray, "n D"]) -> SubsetResult | RuleResult:
        """Cosines of each image with the captions of its row, and what the rule needs besides."""
        task = self.task
        scores = _within_rows(self.images, self.captions, vectors)
        if not task.set and task.rule == SUGARCREPE:
            return SubsetResult(task.name, scores[:, 0, 0].copy(), scores[:, 0, 1].copy())
        texts = None
        if RULES[task.rule].between_captions:
            texts = _within_rows(self.captions, self.captions, vectors)
        return RuleResult(
            task.set or task.name,
            task.subset,
            task.rule,
            scores,
            self.groups,
            texts,
            self.right,
            self.counted,
        )


def task_of(prepared: PreparedSet, subset: str, settings: TaskSettings) -> Task:
    """The task of one subset of a prepared benchmark; see `benchmark_sets`.

    Raises:
      ValueError: set.json has no rule, or none of this subset, or there is no such rule; there are
        no rows, or an image of the first one is not there.
    """
    rule = prepared.record.get("rule")
    own = rule.get(subset) if isinstance(rule, Mapping) else rule
    if not isinstance(own, str):
        raise ValueError(
            f"{prepared.folder / FILE} has no rule of subset {subset!r}, but {rule!r}; there are"
            f" {', '.join(RULES)}. Prepare the set again"
        )
    return Task(
        prepared.task_name(subset),
        prepared.placed(subset, ("image_path", "images")),
        settings.image_prompt,
        settings.caption_prompt,
        settings.limit,
        own,
        prepared.name,
        subset,
    )


def scores_of(results: Iterable[SubsetResult | RuleResult]) -> dict[str, Score]:
    """Scores by name: of subsets that are scored each by itself, then of benchmark sets."""
    of_rules: list[RuleResult] = []
    scores: dict[str, Score] = {}
    for result in results:
        if isinstance(result, RuleResult):
            of_rules.append(result)
        else:
            scores[result.name] = Score(result.accuracy, len(result.caption_score), 50.0)
    return scores | named_scores(of_rules)


def _listed(row: Mapping[str, Any], column: str) -> list[Any]:
    value = row.get(column)
    if not isinstance(value, list | tuple | np.ndarray):
        raise ValueError(f"{column} is no list: {str(value)[:100]}")
    return list(value)


def _within_rows(
    left: Int32[np.ndarray, "rows n"],
    right: Int32[np.ndarray, "rows m"],
    vectors: Float32[np.ndarray, "items D"],
) -> Float32[np.ndarray, "rows n m"]:
    """Cosines of all `left` with all `right` items of each row, by their numbers."""
    rows, n = left.shape
    m = right.shape[1]
    candidates = np.repeat(right, n, axis=0).ravel()
    offsets = m * np.arange(rows * n + 1)
    return ranking.cosines(left.ravel(), candidates, offsets, vectors).reshape(rows, n, m)
