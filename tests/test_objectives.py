"""What an objective makes of a batch: a text counts once, wherever it was read."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unime_jax import objectives
from unime_jax.batch import Batch, Inputs

CONFIG = objectives.Distillation(
    objective="distillation",
    texts="all",
    temperature=0.1,
    teacher_temperature=None,
    direction="teacher_student",
    mask_diagonal=True,
    reduction="mean",
)


def unit(rng, *shape):
    value = rng.normal(size=shape).astype(np.float32)
    return value / np.linalg.norm(value, axis=-1, keepdims=True)


def batch_of(rows: list[int], texts: np.ndarray, lengths: np.ndarray, teacher: np.ndarray) -> Batch:
    """Two buckets with the texts of these numbers, -1 for none, half of the rows in each."""
    groups = []
    for half, width in zip(np.array_split(np.array(rows), 2), (6, 9)):
        tokens = np.zeros((1, len(half), width), np.int32)
        tokens[0, :, :6] = np.where(half[:, None] < 0, 0, texts[half])
        groups.append(
            Inputs(
                tokens=tokens,
                length=np.where(half < 0, 0, lengths[half])[None].astype(np.int32),
                positions=np.zeros((1, len(half), width, 1), np.int32),
                slot=np.full((1, len(half), width, 1), -1, np.int32),
                slot_weight=None,
                patches=None,
                patch_position=None,
                pool_start=None,
                teacher=np.where(half[:, None] < 0, 0, teacher[half])[None].astype(np.float32),
            )
        )
    nothing = np.zeros(0, np.int32)
    return Batch(
        groups=tuple(groups),
        query=nothing,
        positive=nothing,
        negative=np.zeros((0, 0), np.int32),
        target_id=tuple(np.zeros(group.length.shape, np.uint32) for group in groups),
        source=nothing,
    )


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 1000, size=(5, 6)).astype(np.int32)
    tokens[1, 4:], tokens[2] = 0, tokens[1]
    lengths = np.array([6, 4, 5, 6, 6])  # text 2 is text 1 and a token that is 0
    return tokens, lengths, unit(rng, 5, 8), unit(rng, 5, 4)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 1, 0, -1], [1, 0, 4, 1, 2, -1, 3, 3]])
def test_distillation_counts_a_text_once(texts, rows):
    tokens, lengths, teacher, student = texts
    once = batch_of([0, 1, 2, 3, 4, -1], tokens, lengths, teacher)
    twice = batch_of(rows, tokens, lengths, teacher)

    def loss(student, batch, rows):
        embeddings = jnp.where(np.array(rows)[:, None] < 0, 0, student[np.array(rows)])
        halves = [half[None] for half in jnp.array_split(embeddings, 2)]
        return objectives.distillation(halves, batch, CONFIG)[0]

    value = jax.jit(jax.value_and_grad(loss), static_argnums=2)
    found, gradient = value(student, twice, tuple(rows))
    expected, expected_gradient = value(student, once, (0, 1, 2, 3, 4, -1))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_text_ids_tell_texts_apart(texts):
    """Tokens that differ, change places or are missing; not the bucket."""
    tokens, lengths, teacher, _ = texts
    found = objectives.text_id(batch_of([0, 1, 2, 3, 4, 0, 1, 2, 3, 4], tokens, lengths, teacher))
    np.testing.assert_array_equal(found[:5], found[5:])
    assert len(set(found.tolist())) == 5
    orders = np.array(list(itertools.permutations(tokens[0])))
    every = batch_of(
        list(range(len(orders))), orders, np.full(len(orders), 6), np.zeros((len(orders), 1))
    )
    assert len(set(objectives.text_id(every).tolist())) == len(orders)
