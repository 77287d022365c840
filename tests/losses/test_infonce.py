"""contrastive against three plain loops, dense and by blocks of columns; decisions at a bound."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from tests.losses.loops import (
    MORE_OPTIONS,
    OPTIONS,
    assert_reference,
    compiled,
    random_arguments,
    reference,
    unit,
)
from tests.tables import for_each
from unime_jax.losses import contrastive

# Blocks that divide the columns or not, of one column, and wider than all. Of "everything" the
# hardest are chosen as of "two_hardest", which losses by source have.
BLOCKS = {
    "plain": (None, 4),
    "strict_margin": (5,),
    "more_than_columns": (None, 1),
    "hardness": (100,),
    "everything": (None, 4),
}


def with_block(name, block):
    return OPTIONS[name] | ({} if block is None else {"column_block": block})


def test_equals_the_loops_dense_by_blocks_and_on_odd_shapes():
    tried = 0
    draws = list(itertools.product([1, 2, 8, 64], [0.0, 0.5, 1.0]))
    for seed, (name, (ids, masked)) in enumerate(itertools.product(BLOCKS, draws)):
        rng = np.random.default_rng(seed)
        *inputs, arrays = random_arguments(rng, ids=ids, masked=masked)
        expected = reference(*inputs, **arrays, **OPTIONS[name])
        if expected.closest < 1e-5:  # rounding decides
            continue
        for block in BLOCKS[name]:
            run = compiled(**with_block(name, block))(*inputs, arrays)
            what = f"{name}, block {block}, seed {seed}"
            assert_reference(run, expected, OPTIONS[name], what)
        tried += 1
    assert tried > 0.9 * len(BLOCKS) * len(draws)

    # Equals the loops on odd shapes
    for pairs, columns, labels, block in ((1, 1, 1, None), (5, 3, 0, 2)):
        for seed in range(3):
            rng = np.random.default_rng(seed)
            *inputs, arrays = random_arguments(rng, pairs, columns, labels=labels)
            expected = reference(*inputs, **arrays, **OPTIONS["everything"])
            assert expected.closest > 1e-5
            run = compiled(**with_block("everything", block))(*inputs, arrays)
            assert_reference(run, expected, OPTIONS["everything"], f"{pairs} x {columns}")


@functools.cache
def by_row(**options):
    """As `compiled`, with temperatures by row and their gradient."""

    def loss(queries, candidates, temperature, positive, arrays):
        rest = arrays | {"temperature": temperature}
        return contrastive(queries, candidates, positive, **rest, **options)

    slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    return lambda queries, candidates, positive, arrays: slopes(
        queries, candidates, arrays["temperature"], positive, arrays
    )


# "hardest_of_all" is of a mesh in test_infonce_on_meshes.py, dense and by blocks, with pools; what
# dense "terms" count shows in the gradient of their temperature below.
@for_each(
    "name, facts, block",
    itertools.product(MORE_OPTIONS, (False, True), (None, 4)),
    quick=[
        ("terms", True, 4),
        ("duplicates", True, None),
        ("duplicates", False, 4),
        ("pools", True, 4),
        ("explicit_hardness", True, 4),
    ],
)
def test_masks_terms_pools_and_facts_of_pairs_are_those_of_the_loops(name, facts, block):
    """Dense and by blocks; the facts are equal queries, closed sets and temperatures by row."""
    tried, masked = 0, 0.0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        *inputs, arrays = random_arguments(rng, ids=16, facts=facts)
        options = dict(MORE_OPTIONS[name])
        if facts:
            options.pop("temperature", None)
        expected = reference(*inputs, **arrays, **options)
        if expected.closest < 1e-5:  # rounding decides
            continue
        if facts:
            value, (*gradients, slope) = by_row(**options, column_block=block)(*inputs, arrays)
            np.testing.assert_allclose(slope, expected.grad_temperature, rtol=1e-4, atol=1e-5)
            run = value, gradients
        else:
            run = compiled(**options, column_block=block)(*inputs, arrays)
        assert_reference(run, expected, options, f"seed {seed}")
        tried += 1
        masked += expected.metrics.get("duplicate_target_share", 0)
    assert tried > 2 and (masked > 0 or "duplicate_targets" not in options)


def test_a_temperature_that_is_an_array_has_a_gradient():
    """That of the loops, of each row; of one number for all it is their sum.

    Without the hardest it is above, of each row and by blocks.
    """
    rng = np.random.default_rng(2)
    *inputs, arrays = random_arguments(rng, ids=16, facts=True)
    for name, block, temperature in (
        ("terms", None, np.float32(0.2)),
        ("hardest_of_all", 4, arrays["temperature"]),
    ):
        arrays["temperature"] = temperature
        options = {key: x for key, x in MORE_OPTIONS[name].items() if key != "temperature"}
        expected = reference(*inputs, **arrays, **options)

        def loss(temperature, options=options, block=block):
            rest = arrays | {"temperature": temperature}
            return contrastive(*inputs, **rest, **options, column_block=block)[0]

        gradient = jax.jit(jax.grad(loss))(temperature)
        wanted = expected.grad_temperature
        wanted = wanted if gradient.ndim else wanted.sum()
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_spread_out_batch_has_squared_cosines_of_different_rows():
    """Of queries and of positives; with its gradient, by blocks as at once."""
    rng = np.random.default_rng(1)
    queries, candidates, positive, arrays = random_arguments(rng)
    size, wanted = len(queries), 0.0
    slopes = [np.zeros_like(queries), np.zeros_like(candidates)]
    for side, rows, places in ((0, queries, np.arange(size)), (1, candidates, positive)):
        for i in places:
            for j in places:
                wanted += float(rows[i] @ rows[j]) ** 2
                slopes[side][i] += 4 * (rows[i] @ rows[j]) * rows[j]
        for i in places:
            wanted -= float(rows[i] @ rows[i]) ** 2
            slopes[side][i] -= 4 * (rows[i] @ rows[i]) * rows[i]
    pairs = size * (size - 1)
    plain = reference(queries, candidates, positive, **arrays, temperature=0.1)
    without = plain.grad_queries, plain.grad_candidates
    for block in (None, 4):
        run = compiled(temperature=0.1, spread_out_weight=0.5, column_block=block)
        (loss, metrics), gradients = run(queries, candidates, positive, arrays)
        np.testing.assert_allclose(metrics["spread_out"], wanted / pairs, rtol=1e-5)
        np.testing.assert_allclose(loss, plain.loss + 0.5 * wanted / pairs, rtol=1e-5)
        for slope, found, base in zip(slopes, gradients, without, strict=True):
            np.testing.assert_allclose(found - base, 0.5 * slope / pairs, atol=1e-5)


def test_defaults_are_infonce_at_temperature_0_02_of_distinct_targets_on_the_diagonal():
    rng = np.random.default_rng(4)
    queries, candidates = unit(rng, 6, 5), unit(rng, 11, 5)
    scores = queries.astype(np.float64) @ candidates.T.astype(np.float64) / 0.02
    wanted = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(6), np.arange(6)]
    for dtype, size in ((jnp.float32, 1e-5), (jnp.bfloat16, None)):
        given = [jnp.asarray(x, dtype) for x in (queries, candidates)]
        loss, metrics = jax.jit(contrastive)(*given)
        assert loss.dtype == metrics["chance_loss"].dtype == jnp.float32
        if size is None:  # computed in float32, so that only the vectors are rounded
            exact = reference(*(np.asarray(x, np.float64) for x in given), np.arange(6))
            np.testing.assert_allclose(loss, exact.loss, rtol=1e-5)
        else:
            np.testing.assert_allclose(loss, wanted.mean(), rtol=size)

    # Absent arrays mean the diagonal, distinct targets and no masks.
    rng = np.random.default_rng(0)
    queries, candidates = unit(rng, 6, 5), unit(rng, 11, 5)
    for block in (None, 4):
        options = with_block("everything", block)
        expected = reference(queries, candidates, np.arange(6), **OPTIONS["everything"])
        assert_reference(compiled(**options)(queries, candidates, None, {}), expected, options)


def test_a_query_without_negatives_counts_for_nothing():
    rng = np.random.default_rng(1)
    queries, candidates = unit(rng, 6, 5), unit(rng, 11, 5)
    positive = np.arange(6, dtype=np.int32)
    nobody = {
        "target_id": np.zeros(11, np.uint32),
        "explicit_negatives": np.full((6, 3), 7, np.int32),
        "candidate_mask": np.ones(11, bool),
    }
    blocks = (("everything", None), ("everything", 4), ("plain", 4))
    for options in (*(with_block(*given) for given in blocks), MORE_OPTIONS["duplicates"]):
        (loss, metrics), grads = compiled(**options)(queries, candidates, positive, nobody)
        assert loss == 0 and metrics["rows_without_negatives"] == 6
        assert all(np.isfinite(value) for value in metrics.values())
        assert not any(np.any(grad) for grad in grads)

    # One lonely query: its similarity to its own positive is pulled by nobody.
    lonely = {
        "target_id": np.arange(11, dtype=np.uint32),
        "explicit_negatives": np.full((6, 3), -1, np.int32),
        "candidate_mask": np.arange(11) == 0,  # the only negative, and query 0's own positive
    }
    gap = np.einsum("bd,bd->b", queries[1:], candidates[0] - candidates[1:6]) / 0.02
    for block in (None, 4):
        (loss, metrics), (gq, _) = compiled(**with_block("plain", block))(
            queries, candidates, positive, lonely
        )
        assert metrics["rows_without_negatives"] == 1 and not np.any(gq[0])
        np.testing.assert_allclose(loss, np.logaddexp(0, gap).mean(), rtol=1e-5)


def test_decisions_at_a_bound_and_losses_at_the_extremes():
    """A tie with the positive is kept by a margin of 0, and loses; a label is kept anyhow."""
    queries = np.array([[1, 0]], np.float32)
    candidates = np.array([[0.5, 0.75**0.5], [0.5, 0.75**0.5], [0.75, 0.4375**0.5]], np.float32)
    positive = np.zeros(1, np.int32)
    for block in (None, 1, 2):
        options = {} if block is None else {"column_block": block}
        run = compiled(temperature=1.0, false_negative_margin=0.0, **options)
        for labelled, negatives, share in ((-1, [0.5], 1 / 2), (2, [0.5, 0.75], 0), (1, [0.5], 1)):
            arrays = {"explicit_negatives": np.array([[labelled]], np.int32)}
            (loss, metrics), _ = run(queries, candidates, positive, arrays)
            wanted = np.log(1 + np.exp(np.array(negatives) - 0.5).sum())
            np.testing.assert_allclose(loss, wanted, rtol=1e-6)
            assert metrics["negatives_per_query"] == len(negatives), (block, labelled)
            assert metrics["masked_share"] == share and metrics["batch_accuracy"] == 0

    # Logits far apart do not overflow.
    vectors = np.array([[1, 0], [-1, 0]], np.float32)
    for options in ({}, {"column_block": 1}, {"hard_negatives": 1}):
        run = compiled(temperature=0.01, **options)
        for positive, expected in ((0, 0), (1, 200)):
            (loss, _), grads = run(vectors[:1], vectors, np.array([positive], np.int32), {})
            assert loss == expected, options
            assert all(np.isfinite(grad).all() for grad in grads), options

    # The loss of a constant model is that of chance. Of the loops, whose `chance_loss` the loss
    # shows.
    one = np.repeat(unit(np.random.default_rng(0), 1, 5), 8, axis=0)
    for name in ("plain", "two_hardest", "more_than_columns", "hardness"):
        found = reference(one, one, np.arange(8), **OPTIONS[name])
        np.testing.assert_allclose(found.loss, found.metrics["chance_loss"], rtol=1e-5)
        if name == "two_hardest":
            np.testing.assert_allclose(found.loss, np.log(3), rtol=1e-5)


def test_losses_by_source_are_means_over_their_queries():
    """Of the queries that have negatives, and of both directions."""
    rng = np.random.default_rng(5)
    queries, candidates, positive, arrays = random_arguments(rng)
    arrays["target_id"] = np.array([0, 1, 2, 3, 4, 5] + 5 * [6], np.uint32)
    arrays["candidate_mask"] = np.arange(11) == 3  # so that query 3 has no negative forth
    positive[:] = np.arange(6)
    source = np.array([0, 2, 0, 2, 2, -1], np.int32)
    options = OPTIONS["two_hardest"]
    expected = reference(queries, candidates, positive, **arrays, **options)
    for block in (None, 4):
        run = compiled(**with_block("two_hardest", block), sources=3)
        (loss, metrics), _ = run(queries, candidates, positive, arrays | {"source": source})
        np.testing.assert_allclose(loss, expected.loss, rtol=1e-5)
        assert metrics["source_rows"].tolist() == [2, 0, 2], block
        wanted = [
            (np.nanmean(expected.by_query[of]) + np.nanmean(expected.back_by_query[of])) / 2
            for of in (source == 0, source == 2)
        ]
        np.testing.assert_allclose(metrics["source_loss"], [wanted[0], 0, wanted[1]], rtol=1e-5)
    (_, without), _ = jax.eval_shape(compiled(**options), queries, candidates, positive, arrays)
    assert "source_loss" not in without and "source_rows" not in without
