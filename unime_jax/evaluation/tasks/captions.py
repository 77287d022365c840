"""Caption retrieval both ways, of images or clips, as CLIP_benchmark and the UniME papers count it.

A caption asks for its own image among all images, an image for any of its captions among all
captions. Where captions are `grouped`, an image asks for its own group of captions among all
groups, each by its best caption, as CLIP4Clip counts clips of several sentences. Every row counts
as it stands: a caption or an image that comes again, with another row, is a candidate and a query
of its own, and only those of its own row are right for it.

Ties never help, see `corpus_ranking`: a right candidate stands behind all others of its score. The
published code leaves the order of ties to `torch.topk`; without ties both count the same.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32

from unime_jax.batch import MediaKind
from unime_jax.data.formats import Source
from unime_jax.evaluation import ranking
from unime_jax.evaluation.benchmarks.prepared_set import PreparedSet, TaskSettings
from unime_jax.evaluation.encoding.item_table import (
    Encode,
    Images,
    ItemTable,
    encode_table,
    paths_of,
    text_of,
)
from unime_jax.evaluation.retrieval.corpus_ranking import Judgements, judgements_of
from unime_jax.evaluation.retrieval.data import TEXT
from unime_jax.evaluation.scores import WAYS
from unime_jax.evaluation.tasks.retrieval import RetrievalResult, rank_corpus

CAPTION = "{caption}"  # in a prompt, where the caption goes
VIDEO = "<|video_1|>\nRepresent the given video."  # beside a clip, LLaVE's
COLUMNS: Mapping[MediaKind, str] = {"image": "image", "clip": "video"}  # of the paths, in a row
QUERIES = 64  # of a block of scores of groups


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionsResult:
    """Ranks of one set both ways: of all captions among images, of all images among captions.

    Images may be clips: `medium` says so, and names the ways.
    """

    name: str
    captions: Int32[np.ndarray, " images"]  # of each image; those of `t2i` come in this order
    t2i: RetrievalResult
    i2t: RetrievalResult
    medium: MediaKind = "image"

    @property
    def ways(self) -> dict[str, RetrievalResult]:
        """The rankings by way."""
        return dict(zip(WAYS[self.medium], (self.t2i, self.i2t), strict=True))


@dataclasses.dataclass(frozen=True)
class Task:
    """One set; a row has `image`, the path of one, and `captions`, a list of at least one.

    Rows of clips have `video` in place of `image`, all of a set alike.
    """

    name: str
    rows: Source
    image_text: str  # of the image items, with MMEB's `<|image_1|>`
    caption_text: str = CAPTION  # of a caption item; `{caption}` stands for the caption
    limit: int = 0  # the first rows; 0: all
    medium: MediaKind = "image"
    grouped: bool = False  # whether captions are ranked by groups, those of one image each
    kind: Literal["captions"] = "captions"

    def __post_init__(self) -> None:
        if CAPTION not in self.caption_text:
            raise ValueError(f"caption_text {self.caption_text!r} has no {CAPTION} to be replaced")

    def open(self, images: Images) -> "OpenTask":
        """Reads all rows; see `tasks.Task`."""
        count = min(self.limit or len(self.rows), len(self.rows))
        if not count:
            raise ValueError(f"{self} has no rows; leave it out or fetch its data again")
        table = ItemTable(images, self._where)
        pictures: list[int] = []
        captions: list[list[int]] = []
        for number in range(count):
            path, texts = self._sides(self.rows[number], number)
            pictures.append(table.add((self.image_text, path), number))
            keys = [(self.caption_text.replace(CAPTION, text), "") for text in texts]
            captions.append([table.add(key, number) for key in keys])
        return OpenTask(self, table, pictures, captions)

    def _sides(self, row: Mapping[str, Any], number: int) -> tuple[str, list[str]]:
        """The path of the image or clip, as in a key, and its captions."""
        try:
            cell = row.get(COLUMNS[self.medium])
            path = paths_of(cell) if self.medium == "image" else paths_of(None, cell)
        except ValueError as error:
            raise ValueError(f"{self._where(number)}: {error}") from error
        captions = row.get("captions")
        if not isinstance(captions, list | tuple | np.ndarray) or not len(captions):
            raise ValueError(f"{self._where(number)}: captions must be a list of texts")
        texts = [text_of(caption) for caption in captions]
        if not path or not all(texts):
            empty = (
                COLUMNS[self.medium]
                if not path
                else f"caption {texts.index('') + 1} of {len(texts)}"
            )
            raise ValueError(f"{self._where(number)}: {empty} is missing or empty")
        return path, texts

    def _where(self, row: int) -> str:
        return f"{self}, row {row}"

    def __str__(self) -> str:
        return f"captions {self.name!r}"


@dataclasses.dataclass(frozen=True, eq=False)
class OpenTask:
    """Images, and the captions of each, as numbers in a table of distinct items."""

    task: Task
    items: ItemTable
    images: list[int]
    captions: list[list[int]]  # by image

    def encode(self, encode: Encode) -> Float32[np.ndarray, "n D"]:
        """Unit vectors."""
        return encode_table(str(self.task), self.items, encode)

    def score(self, vectors: Float32[np.ndarray, "n D"]) -> CaptionsResult:
        """Ranks all images for each caption, and all captions for each image."""
        name, counts = self.task.name, [len(own) for own in self.captions]
        to, back = WAYS[self.task.medium]
        images = [str(row) for row in range(len(counts))]
        captions = [f"{row}, caption {n}" for row, many in enumerate(counts) for n in range(many)]
        to_images, to_captions = self._judgements()
        i2t = rank_corpus(f"{name} ({back})", images, self.items, to_captions, vectors)
        if self.task.grouped:
            rank = group_ranks(to_captions, vectors)
            i2t = dataclasses.replace(i2t, rank=rank, candidates=len(images))
        return CaptionsResult(
            name=name,
            captions=np.array(counts, np.int32),
            t2i=rank_corpus(f"{name} ({to})", captions, self.items, to_images, vectors),
            i2t=i2t,
            medium=self.task.medium,
        )

    def _judgements(self) -> tuple[Judgements, Judgements]:
        """Captions that ask for images, and images that ask for captions."""
        every = [caption for own in self.captions for caption in own]
        rows = range(len(self.images))
        right = [{row: 1.0} for row in rows for _ in self.captions[row]]
        places = iter(range(len(every)))
        own = [{next(places): 1.0 for _ in self.captions[row]} for row in rows]
        return judgements_of(every, self.images, right), judgements_of(self.images, every, own)


def group_ranks(
    judged: Judgements, vectors: Float32[np.ndarray, "n D"]
) -> Int32[np.ndarray, " queries"]:
    """How many other queries' targets stand before each query's own, each group by its best.

    The candidates are the relevant targets of the queries, one group after another; a group that
    ties with the own one stands before it.
    """
    starts, rank = judged.offsets[:-1], np.empty(len(judged.query), np.int32)
    for start in range(0, len(rank), QUERIES):
        rows = judged.query[start : start + QUERIES]
        scores = ranking.dense_cosines(vectors, rows, judged.candidates)
        best = np.maximum.reduceat(scores, starts, axis=1)
        own = best[np.arange(len(rows)), np.arange(start, start + len(rows))]
        rank[start : start + len(rows)] = np.count_nonzero(best >= own[:, None], axis=1) - 1
    return rank


def task_of(prepared: PreparedSet, subset: str, settings: TaskSettings) -> Task:
    """The task of a prepared set's subset; see `benchmark_sets`.

    The first row says whether it is of clips; set.json, whether captions are grouped. Words that
    set.json has take the place of the prompts.
    """
    clips = "video" in prepared.placed(subset, tuple(COLUMNS.values())).unplaced(0)
    medium: MediaKind = "clip" if clips else "image"
    prompt = settings.video_prompt if clips else settings.image_prompt
    caption = prepared.words("query_text", settings.instructions, settings.caption_prompt)
    return Task(
        prepared.task_name(subset),
        prepared.placed(subset, (COLUMNS[medium],)),
        prepared.words("target_text", settings.instructions, prompt),
        caption.replace(TEXT, CAPTION),
        settings.limit,
        medium,
        bool(prepared.record.get("grouped", False)),
    )
