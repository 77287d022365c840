"""What an objective makes of a batch: a text counts once, wherever it was read."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.loops import reference
from tests.training import tiny_batch
from unime_jax import losses, sharding
from unime_jax.batch import Batch, Inputs
from unime_jax.training import objectives, text_distillation
from unime_jax.training.temperature import initial_temperature

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


def batch_of(
    rows: Sequence[int], texts: np.ndarray, lengths: np.ndarray, teacher: np.ndarray
) -> Batch:
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


def halves(rows):
    """[1, R, D] of the two buckets."""
    return [jax.device_put(half[None]) for half in np.array_split(np.asarray(rows), 2)]


def distilled(config):
    """By two sources."""
    return jax.jit(
        functools.partial(text_distillation.distillation, config=config, sources=("a", "b"))
    )


def test_distillation_counts_a_text_as_often_as_its_columns_have_it(texts):
    tokens, lengths, teacher, student = texts

    @functools.partial(jax.jit, static_argnums=2)
    @jax.value_and_grad
    def value(student, batch, rows):
        embeddings = jnp.where(np.array(rows)[:, None] < 0, 0, student[np.array(rows)])
        parts = [half[None] for half in jnp.array_split(embeddings, 2)]
        return text_distillation.distillation(parts, batch, CONFIG)[0]

    once = (0, 1, 2, 3, 4, -1)
    expected, slope = value(student, batch_of(once, tokens, lengths, teacher), once)
    for rows in ((0, 1, 2, 3, 4, 1, 0, -1), (1, 0, 4, 1, 2, -1, 3, 3)):
        found, gradient = value(student, batch_of(rows, tokens, lengths, teacher), rows)
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=str(rows))
        scale = np.abs(slope).max()
        np.testing.assert_allclose(gradient, slope, atol=1e-5 * scale, err_msg=str(rows))

    # Distillation of queries and pairs counts a text as often as it is in one. Row 5 is text
    # 1 once more, and row 1 is in two pairs.
    tokens, lengths, teacher, student = texts
    numbers = np.array([0, 1, 2, 3, 4, 1])
    batch = dataclasses.replace(
        batch_of(numbers.tolist(), tokens, lengths, teacher),
        query=np.array([1, 5, 1, 0], np.int32),
        positive=np.array([3, 2, 4, 4], np.int32),
        negative=np.zeros((4, 0), np.int32),
        source=np.array([0, 0, 1, 1], np.int32),
    )
    own, theirs = student[numbers], teacher[numbers]
    for texts_of, columns in (("queries", batch.query), ("pairs", batch.positive)):
        config = dataclasses.replace(CONFIG, texts=texts_of, teacher_temperature=0.3)
        found, metrics = distilled(config)(halves(own), batch)
        terms = []
        for i, row in enumerate(batch.query):
            others = np.delete(columns, i)
            p, q = (np.exp(x[others] @ x[row] / heat) for x, heat in ((own, 0.1), (theirs, 0.3)))
            p, q = p / p.sum(), q / q.sum()
            terms.append(np.sum(q * np.log(q / p)))
        np.testing.assert_allclose(found, np.mean(terms), rtol=1e-5, err_msg=texts_of)
        # The source is that of a row's latest pair.
        wanted = [terms[1], np.mean([terms[0], terms[2], terms[3]])]
        np.testing.assert_allclose(metrics["source_loss"], wanted, rtol=1e-5, err_msg=texts_of)
        assert metrics["source_rows"].tolist() == [1, 3]


@pytest.mark.usefixtures("unchecked_shapes")
def test_rows_without_a_teacher_are_refused(texts):
    tokens, lengths, teacher, student = texts
    batch = batch_of([0, 1, 2, 3], tokens, lengths, teacher)
    groups = batch.groups[0], dataclasses.replace(batch.groups[1], teacher=None)
    with pytest.raises(ValueError, match="no teacher embeddings"):
        text_distillation.distillation(
            halves(student[:4]), dataclasses.replace(batch, groups=groups), CONFIG
        )


def test_text_ids_tell_texts_apart(texts):
    """Tokens that differ, change places or are missing; not the bucket."""
    tokens, lengths, teacher, _ = texts
    found = text_distillation.text_id(
        batch_of([0, 1, 2, 3, 4, 0, 1, 2, 3, 4], tokens, lengths, teacher)
    )
    np.testing.assert_array_equal(found[:5], found[5:])
    assert len(set(found.tolist())) == 5
    orders = np.array(list(itertools.permutations(tokens[0])))
    every = batch_of(
        list(range(len(orders))), orders, np.full(len(orders), 6), np.zeros((len(orders), 1))
    )
    assert len(set(text_distillation.text_id(every).tolist())) == len(orders)

    # The mean cosine is that of all pairs of live rows. Without gradient, and 0 where there is
    # no pair.
    tokens, lengths, teacher, student = texts
    numbers = np.array([0, 1, -1, 3, 4, 2, 0, -1])
    batch = batch_of(numbers.tolist(), tokens, lengths, teacher)
    rows = np.where(numbers[:, None] < 0, 7.0, student[numbers]).astype(np.float32)
    live = rows[numbers >= 0].astype(np.float64)
    cosines = (live @ live.T)[~np.eye(len(live), dtype=bool)]
    mesh = sharding.make_mesh(4, 1, 1, jax.devices()[:4])
    placed = jax.device_put(halves(rows), sharding.chunked_rows(mesh))
    with jax.set_mesh(mesh):
        found, gradient = jax.jit(jax.value_and_grad(objectives.mean_cosine))(placed, batch)
    np.testing.assert_allclose(found, cosines.mean(), atol=1e-6)
    assert not any(np.any(part) for part in gradient)
    same = [jnp.ones((1, 4, 4)) / 2] * 2
    np.testing.assert_allclose(objectives.mean_cosine(same, batch), 1, atol=1e-6)
    for alone in ([0, -1], [-1, -1]):
        batch = batch_of(alone, tokens, lengths, teacher)
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
    rows = np.concatenate([student, np.zeros((1, 4), np.float32)])
    _, metrics = distilled(CONFIG)(halves(rows), batch)
    assert metrics["source_rows"].tolist() == [1, 3]
    terms = []
    for i in range(5):
        others = np.delete(np.arange(5), i)
        p, q = (np.exp(x[others] @ x[i] / 0.1) for x in (student, teacher))
        p, q = p / p.sum(), q / q.sum()
        terms.append(np.sum(q * np.log(q / p)))
    wanted = [terms[1], np.mean([terms[0], terms[2], terms[3]])]
    np.testing.assert_allclose(metrics["source_loss"], wanted, rtol=1e-5)


def test_a_judges_scores_beside_or_without_the_contrastive_loss():
    batch, (trainable, frozen) = tiny_batch.make_batch(), tiny_batch.parameters()
    judge = np.random.default_rng(0).uniform(0, 1, (16, 3)).astype(np.float32)
    judge[:, 1:][np.asarray(batch.negative) < 0] = np.nan  # queries 2 and 3 have negatives
    batch = dataclasses.replace(batch, scores=jax.device_put(judge))
    encode = jax.jit(jax.vmap(functools.partial(tiny_batch.encode, trainable, frozen)))
    embeddings = [encode(group) for group in batch.groups]
    table = np.concatenate([np.asarray(part).reshape(-1, tiny_batch.WIDTH) for part in embeddings])
    cosines = [table[[12 + n, *rows]] @ table[n] for n, rows in ((2, [40]), (3, [41, 42]))]

    @jax.jit
    def alone(scores, judged):
        return losses.judge_distillation(scores[None], judged[None], temperature=0.05)[0]

    wanted = (alone(cosines[0], judge[2, :2]) + alone(cosines[1], judge[3])) / 2
    config = objectives.JudgeDistillation(
        objective="judge_distillation",
        temperature=0.05,
        judge_temperature=None,
        contrastive_weight=0.0,
        contrastive=dataclasses.replace(tiny_batch.LOSS, hard_negatives=None, symmetric=False),
    )
    judged = jax.jit(objectives.judge_distillation, static_argnames=("config", "sources"))
    target_id = np.concatenate([np.ravel(x) for x in batch.target_id])

    def contrast(**options):
        """By loops, with the options that judged ones have below."""
        return reference(
            table[batch.query],
            table,
            batch.positive,
            target_id=target_id,
            explicit_negatives=batch.negative,
            candidate_mask=target_id != 0,
            **options,
        )

    plain = dict(temperature=tiny_batch.LOSS.temperature)
    weighed = dict(
        false_negative_margin=tiny_batch.LOSS.false_negative_margin,
        hardness=tiny_batch.LOSS.hardness,
    )

    def loss(config, plain=None, temperature=None):
        return judged(
            embeddings, batch, config=config, plain=plain, sources=("a",), temperature=temperature
        )

    with pytest.raises(ValueError, match="the batch has no scores of its candidates"):
        judged(embeddings, dataclasses.replace(batch, scores=None), config=config)
    value, metrics = loss(config)
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    assert metrics["judged_queries"] == metrics["source_rows"][0] == 2

    both = dataclasses.replace(config, contrastive_weight=0.5)
    expected = contrast(**plain, **weighed)
    combined, metrics = loss(both)
    np.testing.assert_allclose(combined, wanted + 0.5 * expected.loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["judge_loss"], wanted, rtol=1e-4)
    np.testing.assert_allclose(metrics["contrastive_loss"], expected.loss, rtol=1e-4)
    assert metrics["batch_accuracy"] == np.float32(expected.metrics["batch_accuracy"])
    assert metrics["source_rows"][0] == 16 - expected.metrics["rows_without_negatives"]

    # The first steps are InfoNCE alone, whatever the weight.
    infonce = contrast(**plain).loss
    for part in (config, both):
        np.testing.assert_allclose(loss(part, plain=jnp.array(True))[0], infonce, rtol=1e-5)
    np.testing.assert_allclose(loss(both, plain=jnp.array(False))[0], combined, rtol=1e-5)

    # A learned temperature is of the contrastive loss alone; the form is of the judge's.
    warm = jnp.float32(0.5)
    _, metrics = loss(dataclasses.replace(both, form="rank_kl"), temperature=warm)
    expected = contrast(temperature=warm, **weighed)
    np.testing.assert_allclose(metrics["contrastive_loss"], expected.loss, rtol=1e-4)
    alone = jax.jit(functools.partial(losses.judge_distillation, temperature=0.05, form="rank_kl"))
    ranked = [alone(cosines[0][None], judge[2:3, :2]), alone(cosines[1][None], judge[3:4])]
    np.testing.assert_allclose(metrics["judge_loss"], (ranked[0][0] + ranked[1][0]) / 2, rtol=1e-4)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    learns = dataclasses.replace(config.contrastive, temperature_learning_rate=0.1)
    learned = initial_temperature(dataclasses.replace(both, contrastive=learns), mesh)
    np.testing.assert_allclose(np.exp(-learned.log_scale), learns.temperature, rtol=1e-6)
