"""Agreement of a student's similarities with its teacher's on held-out texts."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from unime_jax import files, losses
from unime_jax.batch import Item
from unime_jax.config import Distillation
from unime_jax.data.embedding_store import Embeddings
from unime_jax.data.formats import open_dataset
from unime_jax.data.schema import check_names, to_example
from unime_jax.evaluation.item_table import Encode, Images

NEIGHBOURS = 10
HELD_OUT = "test"


class Agreement(TypedDict):
    """`kl`: the run's own loss over all texts at once, the mean over texts, in nats.

    `overlap`: percent of each text's 10 nearest other texts that are the same for both.
    """

    kl: float
    overlap: float


@dataclasses.dataclass(frozen=True)
class Task:
    """The distinct texts of a dataset's split "test", in MMEB-train's columns."""

    folder: files.Path
    teacher: Embeddings
    suffix: str  # an instruction after every text of the student's
    objective: Distillation
    name: str = HELD_OUT
    kind: Literal["distillation"] = "distillation"

    def open(self, images: Images) -> "OpenTask":
        """Reads all texts and the teacher's embeddings of them; there are no images.

        Raises:
          ValueError: there are too few, or no such split.
          KeyError: the teacher has not seen some of them.
        """
        splits = open_dataset(self.folder)
        check_names([HELD_OUT], splits)
        source = splits[HELD_OUT]
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
        return OpenTask(with_suffix, self.teacher.vectors_of(items), self.objective)


@dataclasses.dataclass(frozen=True, eq=False)
class OpenTask:
    """Items, and the teacher's embeddings of them."""

    items: Sequence[Item]
    teacher: Float32[np.ndarray, "n E"]
    objective: Distillation

    def encode(self, encode: Encode) -> Float32[np.ndarray, "n D"]:
        """The encoder's own vectors."""
        return encode(self.items)

    def score(self, vectors: Float32[np.ndarray, "n D"]) -> Agreement:
        """Compares the similarities of all texts with each other."""
        objective = self.objective
        kl, _ = losses.relational_distillation(
            jnp.asarray(vectors),
            jnp.asarray(self.teacher),
            temperature=objective.temperature,
            teacher_temperature=objective.teacher_temperature,
            direction=objective.direction,
            mask_diagonal=objective.mask_diagonal,
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
