"""Agreement of a student's similarities with its teacher's on held-out texts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from unime_jax import files, losses
from unime_jax.batch import Item
from unime_jax.config import AgreementConfig
from unime_jax.data.embedding_store import Embeddings
from unime_jax.data.formats import Source
from unime_jax.data.pairs import open_pairs
from unime_jax.data.schema import check_names, to_example
from unime_jax.evaluation.encoding.item_table import Encode, Images

_relational_distillation = jax.jit(
    losses.relational_distillation,
    static_argnames=(
        "temperature",
        "teacher_temperature",
        "direction",
        "mask_diagonal",
        "reduction",
    ),
)
NEIGHBOURS = 10
HELD_OUT = "test"


class Agreement(TypedDict):
    """`kl`: the loss of a distillation over all texts at once, the mean over texts, in nats.

    `overlap`: percent of each text's 10 nearest other texts that are the same for both.
    """

    kl: float
    overlap: float


@dataclasses.dataclass(frozen=True)
class Task:
    """The distinct texts of the pairs of a dataset's split "test"."""

    folder: files.Path
    teacher: Embeddings
    suffix: str  # an instruction after every text of the student's
    measure: AgreementConfig
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)  # see `open_pairs`
    name: str = HELD_OUT
    kind: Literal["distillation"] = "distillation"

    def open(self, images: Images) -> "OpenTask":
        """Reads all texts and the teacher's embeddings of them; there are no images.

        Raises:
          ValueError: there are too few, or no such split, or the teacher has not seen one of them.
        """
        source = open_texts(self.folder, self.columns)
        distinct: dict[tuple[str, str], Item] = {}
        for number in range(len(source)):
            example = to_example(HELD_OUT, source[number], str(number))
            for item in (example.query, example.positive, *example.negatives):
                distinct.setdefault(item.identity, item)
        if len(distinct) <= NEIGHBOURS:
            raise ValueError(
                f"{self.folder} has {len(distinct)} texts; more than {NEIGHBOURS} are needed"
            )
        items = list(distinct.values())
        with_suffix = tuple(dataclasses.replace(item, suffix=self.suffix) for item in items)
        try:
            vectors = self.teacher.vectors_of(items)
        except KeyError as error:
            raise ValueError(f"held-out texts in {self.folder}: {error.args[0]}") from error
        return OpenTask(with_suffix, vectors, self.measure)


def open_texts(folder: files.Path, columns: Mapping[str, str]) -> Source:
    """The split "test" of `open_pairs`; ValueError if there is none."""
    splits = open_pairs(folder, columns)
    check_names([HELD_OUT], splits)
    return splits[HELD_OUT]


@dataclasses.dataclass(frozen=True, eq=False)
class OpenTask:
    """Items, and the teacher's embeddings of them."""

    items: Sequence[Item]
    teacher: Float32[np.ndarray, "n E"]
    measure: AgreementConfig

    def encode(self, encode: Encode) -> Float32[np.ndarray, "n D"]:
        """The encoder's own vectors."""
        return encode(self.items)

    def score(self, vectors: Float32[np.ndarray, "n D"]) -> Agreement:
        """Compares the similarities of all texts with each other."""
        measure = self.measure
        kl, _ = _relational_distillation(
            jnp.asarray(vectors),
            jnp.asarray(self.teacher),
            temperature=measure.temperature,
            teacher_temperature=measure.teacher_temperature,
            direction=measure.direction,
            mask_diagonal=measure.mask_diagonal,
            reduction="mean",
        )
        overlap = neighbour_overlap(vectors, self.teacher, NEIGHBOURS)
        return {"kl": float(kl), "overlap": 100 * overlap}


def neighbour_overlap(a: Float[np.ndarray, "n D"], b: Float[np.ndarray, "n E"], k: int) -> float:
    """The mean share of each row's k nearest other rows, by cosine, that `a` and `b` agree on."""
    nearest = []
    for vectors in (a, b):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        scores = unit @ unit.T
        np.fill_diagonal(scores, -np.inf)
        nearest.append(np.argpartition(-scores, k, axis=1)[:, :k])
    shared = [np.intersect1d(*rows).size for rows in zip(*nearest, strict=True)]
    return float(np.mean(shared)) / k
