"""Caption retrieval both ways, as CLIP_benchmark and the UniME papers count it.

A caption asks for its own image among all images, an image for any of its captions among all
captions. Every row counts as it stands: a caption or an image that comes again, with another row,
is a candidate and a query of its own, and only those of its own row are right for it.

Ties never help, see `corpus_ranking`: a right candidate stands behind all others of its score. The
published code leaves the order of ties to `torch.topk`; without ties both count the same.
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
    encode_table,
    paths_of,
    text_of,
)
from unime_jax.evaluation.retrieval.corpus_ranking import Judgements, judgements_of
from unime_jax.evaluation.tasks.retrieval import RetrievalResult, rank_corpus

CAPTION = "{caption}"  # in a prompt, where the caption goes


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionsResult:
    """Ranks of one set both ways: of all captions among images, of all images among captions."""

    name: str
    captions: Int32[np.ndarray, " images"]  # of each image; those of `t2i` come in this order
    t2i: RetrievalResult
    i2t: RetrievalResult

    @property
    def ways(self) -> dict[str, RetrievalResult]:
        """The rankings by way."""
        return {"t2i": self.t2i, "i2t": self.i2t}


@dataclasses.dataclass(frozen=True)
class Task:
    """One set; a row has `image`, the path of one, and `captions`, a list of at least one."""

    name: str
    rows: Source
    image_text: str  # of the image items, with MMEB's `<|image_1|>`
    caption_text: str = CAPTION  # of a caption item; `{caption}` stands for the caption
    limit: int = 0  # the first rows; 0: all
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
        """The path of the image, and its captions."""
        try:
            path = paths_of(row.get("image"))
        except ValueError as error:
            raise ValueError(f"{self._where(number)}: {error}") from error
        captions = row.get("captions")
        if not isinstance(captions, list | tuple | np.ndarray) or not len(captions):
            raise ValueError(f"{self._where(number)}: captions must be a list of texts")
        texts = [text_of(caption) for caption in captions]
        if not path or not all(texts):
            empty = "image" if not path else f"caption {texts.index('') + 1} of {len(texts)}"
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
        images = [str(row) for row in range(len(counts))]
        captions = [f"{row}, caption {n}" for row, many in enumerate(counts) for n in range(many)]
        to_images, to_captions = self._judgements()
        return CaptionsResult(
            name=name,
            captions=np.array(counts, np.int32),
            t2i=rank_corpus(f"{name} (t2i)", captions, self.items, to_images, vectors),
            i2t=rank_corpus(f"{name} (i2t)", images, self.items, to_captions, vectors),
        )

    def _judgements(self) -> tuple[Judgements, Judgements]:
        """Captions that ask for images, and images that ask for captions."""
        every = [caption for own in self.captions for caption in own]
        rows = range(len(self.images))
        right = [{row: 1.0} for row in rows for _ in self.captions[row]]
        places = iter(range(len(every)))
        own = [{next(places): 1.0 for _ in self.captions[row]} for row in rows]
        return judgements_of(every, self.images, right), judgements_of(self.images, every, own)


def task_of(prepared: PreparedSet, subset: str, settings: TaskSettings) -> Task:
    """The task of a prepared set's subset; see `benchmark_sets`."""
    return Task(
        prepared.task_name(subset),
        prepared.placed(subset, ("image",)),
        settings.image_prompt,
        settings.caption_prompt,
        settings.limit,
    )
