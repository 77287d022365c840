"""The batch loss on any chunking and mesh; the step, its warm-up, and steps that are skipped."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.losses.loops import reference
from tests.tables import for_each
from tests.training.tiny_batch import (
    LOSS,
    WIDTH,
    assert_close,
    encode,
    make_batch,
    parameters,
    regroup,
)
from unime_jax import losses, sharding
from unime_jax.batch import Batch
from unime_jax.losses import barred
from unime_jax.training import step
from unime_jax.training.temperature import initial_temperature, update

INFONCE = dataclasses.replace(LOSS, hard_negatives=None, false_negative_margin=None, hardness=0.0)
# Keys that the loss gets by row, or not at all.
NOT_OF_THE_LOSS = (
    "objective", "temperature", "column_block", "mask_same_target", "mask_same_query",
    "closed_sources", "source_temperatures", "temperature_learning_rate", "lowest_temperature",
    "graded_sources", "graded_form", "graded_temperature", "graded_smallest_gap", "graded_weight",
    "teacher_weight", "teacher_temperature", "student_temperature", "teacher_matching_weight",
)  # fmt: skip
IN_TILES = dataclasses.replace(LOSS, column_block=5)
ALL_IN_TILES = dataclasses.replace(IN_TILES, hard_negatives=None)
encode_at_once = jax.jit(encode)


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@functools.cache
def value_and_grad(loss=LOSS):
    """((loss, metrics), gradient) of parameters and a batch."""

    def value(p, batch):
        return step.batch_loss(encode, p, parameters()[1], batch, loss, recompute=True)

    return jax.jit(jax.value_and_grad(value, has_aux=True))


@jax.jit
def at_once(trainable, frozen, groups, slope):
    """All rows, without groups, chunks and row numbers, and the gradient of their slope."""

    def table(trainable):
        flat = [jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), group) for group in groups]
        return jnp.concatenate([encode(trainable, frozen, group) for group in flat])

    rows, pullback = jax.vjp(table, trainable)
    return rows, pullback(slope)[0]


def by_hand(loss, batch, frozen=None):
    """((loss, negatives), gradient) by loops over rows that are encoded at once."""
    arguments = parameters()[0], frozen or parameters()[1], batch.groups
    target_id = np.concatenate([np.ravel(x) for x in batch.target_id])
    table, _ = at_once(*arguments, np.zeros((target_id.size, WIDTH), np.float32))
    table, mask = np.asarray(table), target_id != 0
    if loss.mask_same_target:  # a target is one candidate
        mask &= np.isin(np.arange(mask.size), np.unique(target_id, return_index=True)[1])
    found = reference(
        table[batch.query],
        table,
        batch.positive,
        temperature=loss.temperature,
        hard_negatives=loss.hard_negatives,
        false_negative_margin=loss.false_negative_margin,
        hardness=loss.hardness,
        symmetric=loss.symmetric,
        target_id=target_id if loss.mask_same_target else None,
        explicit_negatives=batch.negative,
        candidate_mask=mask,
    )
    assert found.closest > 1e-5  # no decision is one that rounding could turn
    slope = found.grad_candidates
    np.add.at(slope, batch.query, found.grad_queries)
    _, gradient = at_once(*arguments, slope.astype(np.float32))
    return (found.loss, found.metrics["negatives_per_query"]), gradient


def counted(results):
    """Of all metrics the one whose value no rounding can change."""
    (value, metrics), gradient = results
    return (value, metrics["negatives_per_query"]), gradient


# Equal targets that are not masked are below, dense; in tiles they are the loss's own.
@for_each(
    "loss",
    [LOSS, ALL_IN_TILES, dataclasses.replace(IN_TILES, mask_same_target=False)],
    quick=[LOSS, ALL_IN_TILES],
)
def test_the_loss_is_that_of_all_rows_encoded_at_once(batch, loss):
    """In chunks; dense, and in tiles."""
    assert_close(counted(value_and_grad(loss)(parameters()[0], batch)), by_hand(loss, batch))


def test_equal_targets_are_negatives_of_each_other_only_if_they_are_not_masked(batch):
    """Pairs 4 and 5 have one target: a row of its own for each, with one id."""
    masked = dataclasses.replace(INFONCE, symmetric=False)
    unmasked = dataclasses.replace(masked, mask_same_target=False)
    ids = np.array(batch.target_id[0])
    ids.reshape(-1)[17] = ids.reshape(-1)[16]  # row 17 was pair 5's own
    twice = dataclasses.replace(
        batch,
        positive=np.where(np.arange(16) == 5, 17, batch.positive),
        target_id=(ids, batch.target_id[1]),
    )
    distinct = len(set(np.concatenate([np.ravel(x) for x in twice.target_id]).tolist()) - {0})
    values = []
    for loss, negatives in ((masked, distinct - 1), (unmasked, distinct)):
        found = counted(value_and_grad(loss)(parameters()[0], twice))
        assert found[0][1] == negatives, loss.mask_same_target
        assert_close(found, by_hand(loss, twice), what=str(loss.mask_same_target))
        values.append(found[0][0])
    assert values[1] > values[0] + 1e-3


def test_options_of_queries_and_sources_reach_the_loss(batch):
    """Which rows are closed, have a temperature of their own, or ask the same."""
    config = dataclasses.replace(
        LOSS,
        query_query=True,
        document_document=True,
        document_document_margin=0.3,
        duplicate_queries=0.7,
        duplicate_targets=0.8,
        trust_explicit=False,
        hardness_on="explicit",
        pool=8,
        spread_out_weight=0.5,
        mask_same_query=True,
        closed_sources=("choice",),
        source_temperatures=(("open", 0.1),),
    )
    source = np.array([0, 1, 2, 0] * 4, np.int32)
    query_id = np.arange(16, dtype=np.uint32) // 2
    told = dataclasses.replace(batch, source=source, query_id=query_id)
    names = ("choice", "other", "open")
    groups = [jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), g) for g in batch.groups]
    table = np.concatenate([encode_at_once(*parameters(), group) for group in groups])
    target_id = np.concatenate([np.ravel(x) for x in batch.target_id])
    options = {key: value for key, value in vars(config).items() if key not in NOT_OF_THE_LOSS}
    options["sources"] = 3
    expected, expected_metrics = jax.jit(functools.partial(losses.contrastive, **options))(
        table[batch.query],
        table,
        batch.positive,
        temperature=np.where(source == 2, 0.1, LOSS.temperature).astype(np.float32),
        closed=source == 0,
        query_id=query_id,
        target_id=target_id,
        explicit_negatives=batch.negative,
        candidate_mask=target_id != 0,
        source=source,
    )

    @jax.jit
    def run(batch, plain):
        in_tiles = dataclasses.replace(config, column_block=5)
        return step.batch_loss(
            encode, *parameters(), batch, in_tiles, recompute=False, plain=plain, sources=names
        )

    value, metrics = run(told, False)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name, wanted in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], wanted, rtol=1e-4, atol=1e-6, err_msg=name)
    _, metrics = run(told, True)  # keeps the facts, not the masks
    assert metrics["duplicate_query_share"] == metrics["masked_share"] == 0
    assert metrics["rows_without_negatives"] == expected_metrics["rows_without_negatives"] > 0
    with pytest.raises(ValueError, match="the batch has no ids of queries"):
        jax.eval_shape(
            lambda x: step.batch_loss(encode, *parameters(), x, config, recompute=False), batch
        )


@for_each("loss", [LOSS, IN_TILES], quick=[IN_TILES])
def test_loss_and_gradient_on_a_mesh(batch, loss):
    """All negatives in tiles are on a mesh below, dense ones in losses/test_infonce_on_meshes."""
    mesh = sharding.make_mesh(2, 2, 2)
    rows, pairs = sharding.chunked_rows(mesh), jax.NamedSharding(mesh, jax.P(sharding.ROWS))
    placed = Batch(
        groups=jax.tree.map(lambda x: jax.device_put(x, rows), batch.groups),
        query=jax.device_put(batch.query, pairs),
        positive=jax.device_put(batch.positive, pairs),
        negative=jax.device_put(batch.negative, pairs),
        target_id=jax.tree.map(lambda x: jax.device_put(x, rows), batch.target_id),
        source=jax.device_put(batch.source, pairs),
    )
    with jax.set_mesh(mesh):
        found = counted(value_and_grad(loss)(parameters()[0], placed))
    assert_close(found, by_hand(loss, batch))


def test_a_target_met_twice_is_one_candidate(batch):
    # Representatives.
    ids = np.array([7, 0, 3, 7, 3, 9, 0, 7], np.uint32)
    assert jax.jit(barred.representatives)(ids).tolist() == [0, 1, 2, 0, 2, 5, 1, 0]

    # A target met twice is one candidate. As from two processes: a second row of the same target
    # changes neither loss nor counts.
    ids, length = np.array(batch.groups[1].tokens), np.array(batch.groups[1].length)
    second_id = np.array(batch.target_id[1])
    for copy, row in ((20, 4), (21, 8)):  # rows of the second group, counted in it
        ids.reshape(32, -1)[copy] = ids.reshape(32, -1)[row]
        length.reshape(-1)[copy] = length.reshape(-1)[row]
        second_id.reshape(-1)[copy] = second_id.reshape(-1)[row]
    negative = np.array(batch.negative)
    negative[2, 0] = 32 + 21
    again = dataclasses.replace(
        batch,
        groups=(batch.groups[0], regroup(ids.reshape(32, -1), length.reshape(-1), 4)),
        target_id=(batch.target_id[0], second_id),
        negative=negative,
    )
    for loss in (LOSS, ALL_IN_TILES):
        run = value_and_grad(loss)
        (found, metrics), _ = run(parameters()[0], again)
        (expected, expected_metrics), _ = run(parameters()[0], batch)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        for name in ("negatives_per_query", "masked_share"):
            np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-6)


# The step

RATE = 1e-2
ONE_SOURCE = ("all",)


def schedule(count):
    """Another rate at every step."""
    return RATE * (count + 1)


begin = jax.jit(optax.adam(schedule).init)


def make_state(trainable, **counters):
    counts = {"step": 0, "skipped": 0, "skipped_in_a_row": 0} | counters
    return step.TrainState(
        trainable=trainable,
        frozen=parameters()[1],
        opt_state=begin(trainable),
        **{name: np.int32(count) for name, count in counts.items()},
    )


def make_step(encode=encode, **options):
    run = step.make_train_step(
        encode, optax.adam(schedule), schedule, LOSS, recompute=True, **options
    )
    return jax.jit(run)


@pytest.fixture(scope="module")
def run():
    """With two steps of warm-up."""
    return make_step(infonce_steps=2, sources=ONE_SOURCE)


def test_steps_lower_the_loss(batch, run):
    state, found = make_state(parameters()[0], step=2), []
    for _ in range(40):
        state, metrics = run(state, batch)
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0] / 2
    assert int(state.step) == 42 and int(state.skipped) == 0


def test_the_first_steps_are_of_plain_infonce_and_no_others(batch, run):
    """All negatives, without margin and hardness; every option that is left would show."""
    trainable = parameters()[0]
    plain, chosen = (by_hand(loss, batch)[0][0] for loss in (INFONCE, LOSS))
    for key in ("hard_negatives", "false_negative_margin", "hardness"):
        left = dataclasses.replace(INFONCE, **{key: getattr(LOSS, key)})
        assert abs(by_hand(left, batch)[0][0] - plain) > 1e-3, key
    for number, expected in ((0, plain), (1, plain), (2, chosen), (3, chosen)):
        _, metrics = run(make_state(trainable, step=number), batch)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5, err_msg=str(number))
    _, metrics = make_step()(make_state(trainable), batch)  # without a warm-up
    np.testing.assert_allclose(metrics["loss"], chosen, rtol=1e-5)
    assert "source_loss" not in metrics


def test_a_step_is_one_update_of_the_optimizer_and_its_metrics_are_of_it(batch, run):
    """The rate is that of the step itself, the norm that of the gradient as it came."""
    trainable = parameters()[0]
    new, metrics = run(make_state(trainable, step=5, skipped=3, skipped_in_a_row=2), batch)
    (value, _), gradient = value_and_grad()(trainable, batch)
    updates, _ = jax.jit(optax.adam(schedule).update)(gradient, begin(trainable), trainable)
    moved = {name: trainable[name] + np.asarray(change) for name, change in updates.items()}
    assert_close(new.trainable, moved)
    np.testing.assert_allclose(metrics["learning_rate"], RATE * 6, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    square = sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(metrics["gradient_norm"], square**0.5, rtol=1e-5)
    np.testing.assert_allclose(metrics["source_loss"], [value], rtol=1e-5)
    assert metrics["source_rows"] == 16 - metrics["rows_without_negatives"]
    assert (int(new.step), int(new.skipped), int(new.skipped_in_a_row)) == (6, 3, 0)
    assert (int(metrics["skipped_steps"]), int(metrics["skipped_in_a_row"])) == (3, 0)
    np.testing.assert_array_equal(new.frozen["bias"], parameters()[1]["bias"])


def test_a_temperature_is_learned_within_its_bounds(batch):
    """Adam's first step is as long as its rate, against the slope of ln(1 / temperature)."""
    loss = dataclasses.replace(LOSS, temperature_learning_rate=0.1, lowest_temperature=0.04)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    make = functools.partial(step.make_train_step, encode, optax.adam(schedule), schedule)
    run = jax.jit(make(loss, recompute=True))
    learned = initial_temperature(loss, mesh)
    before = dataclasses.replace(make_state(parameters()[0]), temperature=learned)
    new, metrics = run(before, batch)
    np.testing.assert_allclose(metrics["temperature"], LOSS.temperature, rtol=1e-6)
    (value, _), _ = value_and_grad()(parameters()[0], batch)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)

    lower, higher = (
        by_hand(dataclasses.replace(LOSS, temperature=LOSS.temperature * factor), batch)[0][0]
        for factor in (0.99, 1.01)
    )
    change = float(new.temperature.log_scale - before.temperature.log_scale)
    np.testing.assert_allclose(change, 0.1 * np.sign(higher - lower), rtol=1e-4)

    @jax.jit
    def learn(learned, slope):
        return jax.lax.fori_loop(0, 200, lambda _, state: update(state, slope, loss), learned)

    for slope, bound in ((-1.0, 0.04), (1.0, 1.0)):
        learned = learn(learned, np.float32(slope))
        np.testing.assert_allclose(np.exp(-learned.log_scale), bound, rtol=1e-5)


@jax.custom_vjp
def spoilt(x, factor, slope):
    """`x` times a factor, with a gradient of its own."""
    return x * factor


spoilt.defvjp(
    lambda x, factor, slope: (x * factor, slope),
    lambda slope, g: (jnp.full_like(g, slope), None, None),
)


def test_a_step_that_is_not_finite_changes_only_the_counters(batch):
    """Be it the loss and its gradient, the gradient alone, or the loss alone."""

    def encode_spoilt(trainable, frozen, inputs):
        return spoilt(encode(trainable, frozen, inputs), frozen["factor"], frozen["slope"])

    def frozen(factor, slope):
        return parameters()[1] | {"factor": np.float32(factor), "slope": np.float32(slope)}

    run = make_step(encode_spoilt, sources=ONE_SOURCE)
    for what, factor, slope, finite in (
        ("both", np.nan, np.inf, (False, False)),
        ("gradient", 1, np.inf, (True, False)),
        ("loss", np.nan, 0, (False, True)),
    ):
        state = make_state(parameters()[0], step=7, skipped=4)
        state = dataclasses.replace(state, frozen=frozen(factor, slope))
        once, metrics = run(state, batch)
        is_finite = tuple(bool(np.isfinite(metrics[x])) for x in ("loss", "gradient_norm"))
        assert is_finite == finite, what
        twice, metrics = run(once, batch)
        for old, new in zip(
            jax.tree.leaves((state.trainable, state.opt_state)),
            jax.tree.leaves((twice.trainable, twice.opt_state)),
            strict=True,
        ):
            np.testing.assert_array_equal(old, new, err_msg=what)
        assert int(metrics["skipped_steps"]) == int(twice.skipped) == 6, what
        assert int(metrics["skipped_in_a_row"]) == int(twice.skipped_in_a_row) == 2, what
        assert int(twice.step) == 9, what
    healed = dataclasses.replace(once, frozen=frozen(1, 0))
    healed, metrics = run(healed, batch)
    assert int(healed.skipped) == 5 and int(healed.skipped_in_a_row) == 0


def test_prepared_parameters_take_the_place_of_the_frozen_ones(batch):
    """`prepare` sees both, once a step; the state keeps the frozen ones as they were."""
    trainable, frozen = parameters()

    def prepare(trainable, frozen):
        return {"bias": frozen["bias"] + trainable["matrix"][0]}

    new, metrics = make_step(constants=prepare)(make_state(trainable), batch)
    constants = prepare(trainable, frozen)
    (value, _), _ = by_hand(LOSS, batch, constants)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert new.frozen.keys() == frozen.keys()
    np.testing.assert_array_equal(new.frozen["bias"], frozen["bias"])

    # The mean cosine is among the metrics
    _, metrics = value_and_grad()(parameters()[0], batch)[0]
    rows = [
        encode_at_once(*parameters(), jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), g))
        for g in batch.groups
    ]
    live = np.concatenate(
        [np.asarray(r)[np.ravel(g.live)] for r, g in zip(rows, batch.groups)]
    ).astype(np.float64)
    cosines = (live @ live.T)[~np.eye(len(live), dtype=bool)]
    np.testing.assert_allclose(metrics["mean_cosine"], cosines.mean(), atol=1e-5)


def test_graded_pairs_and_a_teacher_join_the_contrast(batch):
    """Each as the loss alone has it, by pairs and weights: dense, and by blocks round a ring."""
    config = dataclasses.replace(
        LOSS,
        hard_negatives=None,
        false_negative_margin=None,
        graded_sources=("graded",),
        graded_smallest_gap=0.3,
        graded_weight=2.0,
        teacher_weight=0.5,
        teacher_temperature=0.2,
        student_temperature=0.1,
        teacher_matching_weight=0.25,
    )
    rng = np.random.default_rng(0)
    graded = np.arange(16) % 4 == 1
    negative = np.where(graded[:, None], -1, batch.negative)
    grade = np.where(graded, rng.integers(0, 3, 16), np.nan).astype(np.float32)
    teacher = rng.standard_normal((64, WIDTH)).astype(np.float32)
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    parts = teacher[:32].reshape(2, 16, -1), teacher[32:].reshape(4, 8, -1)
    told = dataclasses.replace(
        batch,
        groups=tuple(dataclasses.replace(g, teacher=t) for g, t in zip(batch.groups, parts)),
        source=graded.astype(np.int32),
        grade=grade,
        negative=negative,
        query_id=np.arange(16, dtype=np.uint32),
    )
    groups = [jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), g) for g in batch.groups]
    rest = ~graded
    live = np.concatenate([np.ravel(group.live) for group in batch.groups])
    target_id = np.concatenate([np.ravel(x) for x in batch.target_id])
    candidates = np.unique([*np.asarray(batch.positive)[rest], *negative[negative >= 0]])

    @jax.jit
    def alone():
        table = jnp.concatenate([encode(*parameters(), group) for group in groups])
        query, own = table[batch.query], table[batch.positive]
        contrast, _ = losses.contrastive(
            query[rest],
            table,
            batch.positive[rest],
            temperature=config.temperature,
            hardness=config.hardness,
            symmetric=True,
            explicit_negatives=negative[rest],
            target_id=target_id,
            candidate_mask=np.isin(np.arange(64), candidates),
        )
        cosine = (query * own).sum(axis=1)
        order, _ = losses.graded_pairs(cosine[graded], grade[graded], smallest_gap=0.3)
        kl, _ = losses.teacher_distillation(
            query,
            own,
            teacher[batch.query],
            teacher[batch.positive],
            temperature=0.1,
            teacher_temperature=0.2,
            target_mask=np.arange(16) != 5,  # the target of pair 4
        )
        return contrast, order, kl, losses.teacher_matching(table, teacher, mask=live)

    contrast, order, kl, distance = alone()
    wanted = (12 * contrast + 2 * 4 * order) / (12 + 2 * 4) + 0.5 * kl + 0.25 * distance

    gradients, mesh = [], sharding.make_mesh(2, 2, 2)
    rows, pairs = sharding.chunked_rows(mesh), jax.NamedSharding(mesh, jax.P(sharding.ROWS))
    of_rows = ("groups", "target_id")
    placed = Batch(
        **{
            name: jax.device_put(value, rows if name in of_rows else pairs)
            for name, value in vars(told).items()
        }
    )
    one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])

    @functools.partial(jax.jit, static_argnames="block")
    def run(trainable, batch, plain, block):
        def loss(trainable):
            return step.batch_loss(
                encode,
                trainable,
                parameters()[1],
                batch,
                dataclasses.replace(config, column_block=block),
                recompute=True,
                plain=plain,
                sources=("rest", "graded"),
            )

        return jax.value_and_grad(loss, has_aux=True)(trainable)

    for block, on, given, plain in ((None, one, told, np.bool_(False)), (3, mesh, placed, None)):
        with jax.set_mesh(on):
            (value, metrics), gradient = run(parameters()[0], given, plain, block)
        np.testing.assert_allclose(value, wanted, rtol=1e-5, err_msg=f"block {block}")
        np.testing.assert_allclose(metrics["teacher_loss"], kl, rtol=1e-4)
        np.testing.assert_allclose(metrics["graded_loss"], order, rtol=1e-4)
        assert metrics["source_rows"].tolist() == [12, 4]
        gradients.append(gradient)
    assert_close(gradients[1], gradients[0])
    with jax.set_mesh(one):
        (begun, _), _ = run(parameters()[0], told, np.bool_(True), None)
    assert begun < float(value)  # without hardness and the teacher
