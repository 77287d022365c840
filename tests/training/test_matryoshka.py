"""The objective on prefixes: the sum of what each objective is of each prefix alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tables import for_each
from tests.training.tiny_batch import LOSS, WIDTH, assert_close, encode, make_batch, parameters
from unime_jax import losses, sharding
from unime_jax.batch import Batch
from unime_jax.training import step
from unime_jax.training.loss_settings import (
    Contrastive,
    Distillation,
    JudgeDistillation,
    Matryoshka,
)
from unime_jax.training.matryoshka import objective_loss

PREFIXES = Matryoshka(dims=(3, 8), weights=(0.5, 2.0))
ONE_PREFIX = Matryoshka(dims=(3,), weights=(0.5,))
SOURCES = ("rest", "graded")
TAUGHT = dict(teacher_temperature=0.2, student_temperature=0.1, teacher_weight=0.5)
MASKS = dataclasses.replace(
    LOSS,
    query_query=True,
    document_document=True,
    query_query_margin=0.1,
    duplicate_targets=0.97,
    spread_out_weight=0.3,
    source_temperatures=(("graded", 0.1),),
    trust_explicit=False,
)
JUDGED = JudgeDistillation(
    objective="judge_distillation",
    temperature=0.05,
    judge_temperature=None,
    contrastive_weight=0.5,
    contrastive=dataclasses.replace(LOSS, hardness=0.0, teacher_matching_weight=0.2),
)
OBJECTIVES = {
    "terms and masks by blocks": dataclasses.replace(MASKS, column_block=7),
    "graded, taught": dataclasses.replace(
        LOSS, graded_sources=("graded",), **TAUGHT, teacher_matching_weight=0.2
    ),
    "judged": JUDGED,
    "distilled": Distillation(
        objective="distillation",
        texts="all",
        temperature=0.1,
        teacher_temperature=None,
        direction="symmetric",
        mask_diagonal=True,
        reduction="mean",
    ),
}


@pytest.fixture(scope="module")
def batch():
    """With a teacher, a judge's scores, and grades."""
    rng = np.random.default_rng(0)
    plain = make_batch()
    graded = np.arange(16) % 4 == 1
    teacher = rng.standard_normal((64, WIDTH)).astype(np.float32)
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    parts = teacher[:32].reshape(2, 16, -1), teacher[32:].reshape(4, 8, -1)
    scores = rng.uniform(0, 1, (16, 3)).astype(np.float32)
    scores[:, 1:][np.asarray(plain.negative) < 0] = np.nan
    told = dataclasses.replace(
        plain,
        groups=tuple(dataclasses.replace(g, teacher=t) for g, t in zip(plain.groups, parts)),
        source=graded.astype(np.int32),
        query_id=np.arange(16, dtype=np.uint32),
        scores=scores,
        grade=np.where(graded, rng.integers(0, 3, 16), np.nan).astype(np.float32),
    )
    return jax.device_put(told)


@pytest.fixture(scope="module")
def embeddings(batch):
    """Zeros in the rows that are padding."""

    @jax.jit
    def encoded(groups):
        vectors = [jax.vmap(functools.partial(encode, *parameters()))(x) for x in groups]
        return [jnp.where(x.live[..., None], v, 0) for x, v in zip(groups, vectors)]

    return encoded(batch.groups)


def cut(parts, groups, dim):
    """Prefixes scaled to length one; padding, which nobody looks at, has no length to divide by."""
    parts = [jnp.where(x.live[..., None], part, 1) for x, part in zip(groups, parts)]
    parts = [part[..., :dim] for part in parts]
    if dim == WIDTH:
        return parts
    return [part / jnp.linalg.norm(part, axis=-1, keepdims=True) for part in parts]


def of_prefix(objective):
    """The objective without the distance from a teacher's numbers, which is of whole vectors."""
    if isinstance(objective, JudgeDistillation):
        return dataclasses.replace(objective, contrastive=of_prefix(objective.contrastive))
    if isinstance(objective, Distillation):
        return objective
    return dataclasses.replace(objective, teacher_matching_weight=0.0)


def at_once(objective):
    """The objective without blocks, of which the loss is the same and quicker to compile."""
    blocks = isinstance(objective, Contrastive) and objective.column_block
    return dataclasses.replace(objective, column_block=None) if blocks else objective


BLOCKS = "terms and masks by blocks"


# A gradient goes the same way through a prefix whatever the objective is.
@for_each(
    "name, differentiated",
    [(BLOCKS, False), *((name, True) for name in OBJECTIVES)],
    quick=[(BLOCKS, False), ("distilled", True)],
)
def test_a_loss_on_prefixes_is_the_sum_of_it_on_each(batch, embeddings, name, differentiated):
    """Each cut and scaled by itself, masks and all; gradients too, and a learned temperature's."""
    objective, prefixes = OBJECTIVES[name], PREFIXES if differentiated else ONE_PREFIX
    weights = dict(zip(prefixes.dims, prefixes.weights, strict=True)) | {WIDTH: 1.0}
    graded = name.startswith("graded")
    own = batch if graded else dataclasses.replace(batch, grade=None)
    heat = jnp.float32(0.07) if graded else None
    given = dict(sources=SOURCES)

    def slopes(loss):
        with_value = jax.value_and_grad(loss, has_aux=True)
        return jax.jit(with_value if differentiated else lambda both: (loss(both), both))

    @slopes
    def alone(both):
        parts, heat = both
        total, each = 0, {}
        for dim, weight in weights.items():
            chosen = at_once(objective if dim == WIDTH else of_prefix(objective))
            short = cut(parts, own.groups, dim)
            each[dim] = objective_loss(short, own, chosen, temperature=heat, **given)
            total += weight * each[dim][0]
        return total, each

    @slopes
    def together(both):
        return objective_loss(both[0], own, objective, prefixes, temperature=both[1], **given)

    (wanted, each), slope = alone((embeddings, heat))
    (value, metrics), gradient = together((embeddings, heat))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert_close(gradient, slope, 3e-5)
    for dim, (loss, _) in each.items():
        np.testing.assert_allclose(metrics[f"loss/{dim}"], loss, rtol=1e-5, err_msg=str(dim))
    for summed in ("chance_loss", "source_loss"):
        total = sum(weight * each[dim][1][summed] for dim, weight in weights.items())
        np.testing.assert_allclose(metrics[summed], total, rtol=1e-4, err_msg=summed)
    whole = each[WIDTH][1]
    assert metrics.keys() == whole.keys() | {f"loss/{dim}" for dim in weights}
    for same in {"positive_similarity", "nearest_agreement", "teacher_distance"} & whole.keys():
        np.testing.assert_allclose(metrics[same], whole[same], rtol=1e-5, err_msg=same)


@pytest.mark.slow
def test_prefixes_go_with_chunks_round_a_ring_of_devices(batch):
    """GradCache on a mesh gives the loss, metrics and gradient of one device."""
    objective = dataclasses.replace(LOSS, column_block=3, hard_negatives=None, symmetric=False)
    own = dataclasses.replace(batch, grade=None)
    mesh, one = (
        sharding.make_mesh(2, 2, 1, jax.devices()[:4]),
        sharding.make_mesh(1, 1, 1, jax.devices()[:1]),
    )
    rows, pairs = sharding.chunked_rows(mesh), jax.NamedSharding(mesh, jax.P(sharding.ROWS))
    placed = Batch(
        **{
            name: jax.device_put(value, rows if name in ("groups", "target_id") else pairs)
            for name, value in vars(own).items()
        }
    )

    def run(trainable, batch):
        def loss(trainable):
            return step.batch_loss(
                encode,
                trainable,
                parameters()[1],
                batch,
                objective,
                prefixes=ONE_PREFIX,
                recompute=True,
            )

        return jax.value_and_grad(loss, has_aux=True)(trainable)

    results = []
    for on, given in ((one, own), (mesh, placed)):
        with jax.set_mesh(on):
            results.append(jax.jit(run)(parameters()[0], given))
    (value, metrics), _ = results[0]
    assert_close(results[1], results[0])
    parts = [float(metrics[f"loss/{dim}"]) for dim in (3, WIDTH)]
    np.testing.assert_allclose(value, 0.5 * parts[0] + parts[1], rtol=1e-5)


@pytest.mark.usefixtures("unchecked_shapes")
@for_each(
    "dims, weights, message",
    [
        ((), (), "at least one"),
        ((3, WIDTH), (), f"below the {WIDTH} numbers"),
        ((0, 3), (), "above 0"),
        ((8, 3), (), "ascend"),
        ((3,), (1.0, 1.0), "as many as dims"),
        ((3,), (0.0,), "above 0"),
    ],
)
def test_prefixes_that_cannot_be_meant_are_refused(embeddings, dims, weights, message):
    with pytest.raises(ValueError, match=message):
        losses.matryoshka(lambda parts: (jnp.zeros(()), {}), embeddings, dims=dims, weights=weights)
    if not dims or dims[-1] >= WIDTH:  # of no model at all, a config says it
        return
    with pytest.raises(ValueError, match="config.matryoshka."):
        Matryoshka(dims, weights)
