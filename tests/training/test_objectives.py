"""What an objective makes of a batch: a text counts once, wherever it was read."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unime_jax import sharding
from unime_jax.batch import Batch, Inputs
from unime_jax.training import objectives

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
                live=half[None] >= 0,
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


@pytest.mark.parametrize("devices", [1, 4])
def test_the_mean_cosine_is_that_of_all_pairs_of_live_rows(texts, devices):
    tokens, lengths, teacher, student = texts
    numbers = np.array([0, 1, -1, 3, 4, 2, 0, -1])
    batch = batch_of(numbers.tolist(), tokens, lengths, teacher)
    rows = np.where(numbers[:, None] < 0, 7.0, student[numbers])  # of no meaning, but finite
    halves = [half[None] for half in np.array_split(rows, 2)]
    live = rows[numbers >= 0]
    cosines = (live @ live.T)[~np.eye(len(live), dtype=bool)]
    mesh = sharding.make_mesh(devices, 1, 1, jax.devices()[:devices])
    halves = jax.device_put(halves, sharding.chunked_rows(mesh))
    with jax.set_mesh(mesh):
        found = jax.jit(objectives.mean_cosine)(halves, batch)
    np.testing.assert_allclose(found, cosines.mean(), atol=1e-6)
    same = [jnp.ones((1, 4, 4)) / 2] * 2
    np.testing.assert_allclose(objectives.mean_cosine(same, batch), 1, atol=1e-6)


def test_the_mean_cosine_of_one_row_is_none(texts):
    tokens, lengths, teacher, student = texts
    batch = batch_of([0, -1], tokens, lengths, teacher)
    assert objectives.mean_cosine([student[None, :1], student[None, :1]], batch) == 0


def test_losses_of_distillation_by_the_source_of_the_pairs(texts):
    """Text 4 is in no pair, text 0 in pairs of two sources: it counts for the later one."""
    tokens, lengths, teacher, student = texts
    batch = dataclasses.replace(
        batch_of([0, 1, 2, 3, 4, -1], tokens, lengths, teacher),
        query=np.array([0, 2], np.int32),
        positive=np.array([1, 0], np.int32),
        negative=np.array([[-1], [3]], np.int32),
        source=np.array([0, 1], np.int32),
    )
    halves = np.array_split(np.concatenate([student, np.zeros((1, 4), np.float32)]), 2)
    halves = [jnp.asarray(half[None]) for half in halves]
    _, metrics = objectives.distillation(halves, batch, CONFIG, sources=2)
    assert metrics["source_rows"].tolist() == [1, 3]
    assert np.all(np.isfinite(metrics["source_loss"]))
