"""Held-out texts: how far a student's similarities are from its teacher's."""

import dataclasses
import pathlib
from typing import TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from unime_jax import losses
from unime_jax.batch import Item
from unime_jax.data.embedding_store import Embeddings
from unime_jax.data.formats import open_dataset
from unime_jax.data.schema import check_names, to_example
from unime_jax.encode import Encoder
from unime_jax.training.objectives import Distillation

NEIGHBOURS = 10
HELD_OUT = "test"


class Agreement(TypedDict):
    """`kl`: the run's own loss over all texts at once, the mean over texts, in nats.

    `overlap`: percent of each text's 10 nearest other texts that are the same for both.
    """

    kl: float
    overlap: float


@dataclasses.dataclass(frozen=True)
class Texts:
    """Items, and the teacher's embeddings of them."""

    items: tuple[Item, ...]
    teacher: Float32[np.ndarray, "n E"]
    objective: Distillation


def open_texts(
    folder: pathlib.Path, teacher: Embeddings, suffix: str, objective: Distillation
) -> Texts:
    """The distinct texts of a dataset's split "test", in MMEB-train's columns.

    Raises:
      ValueError: there are too few, or no such split.
      KeyError: the teacher has not seen some of them.
    """
    splits = open_dataset(folder)
    check_names([HELD_OUT], splits)
    source = splits[HELD_OUT]
    found: dict[tuple[str, str], Item] = {}
    for number in range(len(source)):
        example = to_example(HELD_OUT, source[number], str(number))
        for item in (example.query, example.positive, *example.negatives):
            found.setdefault(item.identity, item)
    if len(found) <= NEIGHBOURS:
        raise ValueError(f"{folder} has {len(found)} texts; more than {NEIGHBOURS} are needed")
    items = list(found.values())
    vectors = teacher.vectors_of(items)
    with_suffix = tuple(dataclasses.replace(item, suffix=suffix) for item in items)
    return Texts(with_suffix, vectors, objective)


def evaluate(texts: Texts, encoder: Encoder) -> Agreement:
    """Encodes the texts and compares."""
    student = encoder(texts.items)
    objective = texts.objective
    kl, _ = losses.relational_distillation(
        jnp.asarray(student),
        jnp.asarray(texts.teacher),
        temperature=objective.temperature,
        teacher_temperature=objective.teacher_temperature,
        direction=objective.direction,
        mask_diagonal=objective.mask_diagonal,
        reduction="mean",
    )
    overlap = neighbour_overlap(student, texts.teacher, NEIGHBOURS)
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
