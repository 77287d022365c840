"""contrastive: against the original implementations, and against three plain loops."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads
from safetensors.numpy import load_file

from unime_jax.losses import contrastive

# Nearly all of this file's time is compilation.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
GOLDEN = Path(__file__).parents[1] / "golden" / "losses"


def golden(name):
    case = json.loads((GOLDEN / name / "case.json").read_text())
    return case, load_file(GOLDEN / name / "io.safetensors")


def value_and_grads(x, y, positive=None, **options):
    def loss(x, y):
        return contrastive(x, y, positive, **options)[0]

    value, (gx, gy) = jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, y)
    return np.asarray(value), np.asarray(gx), np.asarray(gy)


def loss_per_query(x, y, **options):
    """Each query alone against all targets."""

    def one(query, column):
        return contrastive(query[None], y, column[None], **options)[0]

    return np.asarray(jit(jax.vmap(one))(x, jnp.arange(len(x))))


def assert_loss(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def assert_grad(actual, expected):
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max(initial=0))
    )


# --- the original implementations -------------------------------------------------------------


def unime_options(case):
    return {
        "temperature": case["temperature"],
        "hard_negatives": case["k"],
        "false_negative_margin": case["threshold"],
    }


@pytest.mark.parametrize(
    "name", ["all_negatives", "b32_k4", "basic", "temp05", "thr0", "thr_neg", "two_process"]
)
def test_unime_golden(name):
    case, data = golden(f"unime_v1/{name}")
    loss, gx, gy = value_and_grads(data["x"], data["y"], **unime_options(case))
    assert_loss(loss, data["loss_f64"])
    assert_grad(gx, data["grad_x"])
    assert_grad(gy, data["grad_y"])
    if name == "two_process":  # theirs is multiplied by the number of processes
        assert_loss(2 * loss, data["loss_rank0"])
        assert_loss(2 * loss, data["loss_rank1"])


def test_unime_golden_with_copies_of_the_positive():
    case, data = golden("unime_v1/dup_positive")
    x, y, options = data["x"], data["y"], unime_options(case)
    _, same_target = np.unique(y, axis=0, return_inverse=True)
    same_target = same_target.reshape(-1).astype(np.int32)
    assert len(set(same_target)) < len(y)

    loss, gx, gy = value_and_grads(x, y, **options)
    assert_loss(loss, data["loss_f64"])
    assert_grad(gx, data["grad_x"])
    together = np.zeros((len(y), len(y)), np.float32)  # which copy is taken is not defined
    together[same_target, np.arange(len(y))] = 1
    assert_grad(together @ gy, together @ data["grad_y"])

    masked, _, _ = value_and_grads(x, y, target_id=same_target, **options)
    expected = reference(x, y, np.arange(len(x)), target_id=same_target, **options)
    assert_loss(masked, expected.loss)
    assert masked < 0.9 * loss


@pytest.mark.parametrize("name", ["few_valid", "batch_equals_k"])
def test_unime_golden_with_fewer_than_k_negatives(name):
    """The original lets dropped candidates back in; here the negatives left are repeated."""
    case, data = golden(f"unime_v1/{name}")
    x, y, options = data["x"], data["y"], unime_options(case)
    few = np.isin(np.arange(len(x)), case["rows_with_fewer_than_k"])
    per_query = loss_per_query(x, y, **options)
    assert_loss(per_query[~few], data["loss_per_query"][~few])
    assert np.all(np.abs(per_query - data["loss_per_query"])[few] > 1e-3)

    loss, gx, gy = value_and_grads(x, y, **options)
    assert_grad(gx[~few], data["grad_x"][~few])
    expected = reference(x, y, np.arange(len(x)), **options)
    assert_loss(loss, expected.loss)
    assert_grad(gx, expected.grad_queries)
    assert_grad(gy, expected.grad_candidates)
    for i in np.flatnonzero(few):  # the cycle, written out from the recorded choice
        picked = data["neg_indices"][i][data["neg_valid"][i] == 1]
        scores = data["sim"][i][np.resize(picked, case["k"])].astype(np.float64)
        gap = (scores - data["sim"][i, i]) / case["temperature"]
        assert_loss(per_query[i], np.logaddexp.reduce(np.append(gap, 0)))


@pytest.mark.parametrize("name", ["basic", "b33", "two_targets_per_query", "two_process"])
def test_vlm2vec_golden(name):
    case, data = golden(f"vlm2vec/{name}")
    positive = np.arange(len(data["x"]), dtype=np.int32) * case.get("targets_per_query", 1)
    options = {"temperature": case["temperature"]}
    loss, gx, gy = value_and_grads(data["x"], data["y"], positive, **options)
    assert_loss(loss, data["loss"])
    assert_grad(gx, data["grad_x"])
    assert_grad(gy, data["grad_y"])
    if name == "two_process":
        assert_loss(2 * loss, data["loss_rank0"])
        assert_grad(2 * gx, data["grad_x_ranks"])
        assert_grad(2 * gy, data["grad_y_ranks"])


LLAVE = [
    "alpha0",
    "alpha05",
    "alpha9",
    "alpha9_duplicates",
    "alpha9_scale20",
    "alpha05_two_process",
    "alpha9_two_process",
]


@pytest.mark.parametrize("name", LLAVE)
def test_llave_golden(name):
    case, data = golden(f"llave/{name}")
    options = {
        "temperature": 1 / case["logit_scale"],
        "hardness": case["alpha"],
        "symmetric": True,
    }
    loss, gx, gy = value_and_grads(data["x"], data["y"], **options)
    assert_loss(loss, data["loss_f64"])
    assert_grad(gx, data["grad_x"])
    assert_grad(gy, data["grad_y"])
    if case["world_size"] == 2:
        assert_loss(loss, (data["loss_rank0"] + data["loss_rank1"]) / 2)
        assert_grad(2 * gx, data["grad_x_ranks"])
        assert_grad(2 * gy, data["grad_y_ranks"])


@pytest.mark.parametrize("name", ["separate_vlm2vec", "shared_llave", "shared_unime_v1"])
def test_gradients_that_the_original_caches(name):
    case, data = golden(f"gradcache/{name}")
    options = {
        "vlm2vec": lambda a: {"temperature": a["temperature"]},
        "llave": lambda a: {
            "temperature": 1 / a["logit_scale"],
            "hardness": a["alpha"],
            "symmetric": True,
        },
        "unime_v1": unime_options,
    }[case["loss"]](case["loss_args"])
    loss, gx, gy = value_and_grads(data["query_reps"], data["target_reps"], **options)
    assert_loss(loss, data["loss"])
    assert_grad(gx, data["cache_query"])
    assert_grad(gy, data["cache_target"])


# --- three plain loops ------------------------------------------------------------------------


@dataclasses.dataclass
class Reference:
    loss: float
    grad_queries: np.ndarray
    grad_candidates: np.ndarray
    metrics: dict[str, float]
    closest: float  # the smallest distance of a score from a decision that rounding could turn


def loop(scores, positive, is_other, is_labelled, temperature, k, margin, hardness):
    """One direction in float64: mean loss, its gradient by the scores, metrics, closest call."""
    losses, chances, gradients, metrics, closest = [], [], {}, [], 1.0
    dropped = candidates = 0
    for i, row in enumerate(scores):
        s_pos, negatives = row[positive[i]], []
        for j, s in enumerate(row):
            if not is_other(i, j):
                continue
            if is_labelled(i, j):
                negatives.append((s, j))
                continue
            candidates += 1
            if margin is not None:
                closest = min(closest, abs(s - s_pos - margin))
                if s > s_pos + margin:
                    dropped += 1
                    continue
            negatives.append((s, j))
        negatives.sort(reverse=True)
        if not negatives:
            metrics.append((s_pos, None, None, 0))
            continue
        metrics.append((s_pos, negatives[0][0], negatives[-1][0], len(negatives)))
        closest = min(closest, abs(s_pos - negatives[0][0]))
        kept = negatives
        if k is not None:
            if len(negatives) > k:
                closest = min(closest, negatives[k - 1][0] - negatives[k][0])
            kept = [negatives[slot % min(k, len(negatives))] for slot in range(k)]
        logits = [(s - s_pos) / temperature + hardness * s for s, _ in kept]
        top = max(0.0, *logits)
        total = np.exp(-top) + sum(np.exp(logit - top) for logit in logits)
        losses.append(top + np.log(total))
        chances.append(np.log(1 + len(kept) * np.exp(hardness * s_pos)))
        gradient = np.zeros_like(row)
        for logit, (_, j) in zip(logits, kept, strict=True):
            share = np.exp(logit - top) / total / temperature
            gradient[j] += share
            gradient[positive[i]] -= share
        gradients[i] = gradient
    by_score = np.zeros_like(scores)
    for i, gradient in gradients.items():
        by_score[i] = gradient / len(losses)
    s_pos, hard, easy, count = zip(*metrics, strict=True)
    live = [i for i, c in enumerate(count) if c]

    def mean(values):
        return sum(values) / max(1, len(values))

    return (
        mean(losses),
        by_score,
        {
            "positive_similarity": mean(s_pos),
            "hard_negative_similarity": mean([hard[i] for i in live]),
            "easy_negative_similarity": mean([easy[i] for i in live]),
            "negatives_per_query": mean(count),
            "masked_share": dropped / max(1, candidates),
            "rows_without_negatives": len(count) - len(live),
            "batch_accuracy": mean([s_pos[i] > hard[i] for i in live]),
            "chance_loss": mean(chances),
        },
        closest,
    )


def reference(
    queries,
    candidates,
    positive,
    *,
    temperature=0.02,
    hard_negatives=None,
    false_negative_margin=None,
    hardness=0.0,
    symmetric=False,
    target_id=None,
    explicit_negatives=None,
    candidate_mask=None,
):
    queries, candidates = queries.astype(np.float64), candidates.astype(np.float64)
    pairs, columns = len(queries), len(candidates)

    def same(a, b):
        return a == b or (target_id is not None and target_id[a] == target_id[b])

    def is_other(i, j):
        return not same(positive[i], j) and (candidate_mask is None or candidate_mask[j])

    def is_labelled(i, j):
        return explicit_negatives is not None and j in explicit_negatives[i]

    rules = (temperature, hard_negatives, false_negative_margin, hardness)
    scores = np.array([[queries[i] @ candidates[j] for j in range(columns)] for i in range(pairs)])
    loss, gradient, metrics, closest = loop(scores, positive, is_other, is_labelled, *rules)
    if symmetric:
        back, by_score, others, near = loop(
            scores[:, positive].T,
            np.arange(pairs),
            lambda i, j: i != j and not same(positive[i], positive[j]),
            lambda i, j: False,
            *rules,
        )
        loss, gradient, closest = (loss + back) / 2, gradient / 2, min(closest, near)
        metrics["chance_loss"] = (metrics["chance_loss"] + others["chance_loss"]) / 2
        for i in range(pairs):
            for j in range(pairs):
                gradient[j, positive[i]] += by_score[i, j] / 2
    return Reference(loss, gradient @ candidates, gradient.T @ queries, metrics, closest)


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def random_arguments(rng, pairs, columns, width=5, ids=8, masked=0.2, labels=3):
    explicit = rng.integers(-1, columns, (pairs, labels), dtype=np.int32)
    explicit[rng.random((pairs, labels)) < 0.3] = -1
    arrays = {
        "target_id": rng.integers(0, ids, columns, dtype=np.uint32),
        "explicit_negatives": explicit,
        "candidate_mask": rng.random(columns) >= masked,
    }
    positive = rng.integers(0, columns, pairs, dtype=np.int32)
    return unit(rng, pairs, width), unit(rng, columns, width), positive, arrays


@functools.cache
def compiled(**options):
    def loss(queries, candidates, positive, arrays):
        return contrastive(queries, candidates, positive, **arrays, **options)

    return jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def check_against_loops(expected, queries, candidates, positive, arrays, options):
    (loss, metrics), (gq, gc) = compiled(**options)(queries, candidates, positive, arrays)
    np.testing.assert_allclose(loss, expected.loss, rtol=2e-5, atol=2e-5)
    # Random vectors clash more than trained ones: logits near 100, hence a wider bound.
    for actual, wanted in ((gq, expected.grad_queries), (gc, expected.grad_candidates)):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=2e-5 * max(1, np.abs(wanted).max()))
    assert metrics.keys() == expected.metrics.keys()
    for name, value in metrics.items():
        assert value.shape == () and value.dtype == jnp.float32
        np.testing.assert_allclose(
            value, expected.metrics[name], rtol=1e-5, atol=1e-6, err_msg=name
        )


OPTIONS = {
    "plain": {},
    "warm": {"temperature": 0.3},
    "margin": {"false_negative_margin": 0.1},
    "strict_margin": {"false_negative_margin": -0.3, "symmetric": True, "temperature": 0.1},
    "two_hardest": {"hard_negatives": 2, "symmetric": True},
    "more_than_columns": {"hard_negatives": 64, "false_negative_margin": 0.1, "temperature": 0.1},
    "hardness": {"hardness": 9.0, "symmetric": True},
    "everything": {
        "temperature": 0.05,
        "hard_negatives": 3,
        "false_negative_margin": 0.05,
        "hardness": 4.0,
        "symmetric": True,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=40, deadline=None)
@given(
    seed=strategies.integers(0, 2**32 - 1),
    ids=strategies.sampled_from([1, 2, 4, 8, 64]),
    masked=strategies.sampled_from([0.0, 0.3, 0.8, 1.0]),
)
def test_equals_the_loops(name, seed, ids, masked):
    rng = np.random.default_rng(seed)
    *inputs, arrays = random_arguments(rng, 6, 11, ids=ids, masked=masked)
    expected = reference(*inputs, **arrays, **OPTIONS[name])
    assume(expected.closest > 1e-5)
    check_against_loops(expected, *inputs, arrays, OPTIONS[name])


@pytest.mark.parametrize(
    ("pairs", "columns", "labels"), [(1, 1, 1), (1, 4, 1), (2, 2, 1), (5, 3, 2), (3, 9, 0)]
)
def test_equals_the_loops_on_odd_shapes(pairs, columns, labels):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        *inputs, arrays = random_arguments(rng, pairs, columns, labels=labels)
        expected = reference(*inputs, **arrays, **OPTIONS["everything"])
        assert expected.closest > 1e-5
        check_against_loops(expected, *inputs, arrays, OPTIONS["everything"])


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_absent_arrays_mean_diagonal_distinct_targets_and_no_masks(name):
    rng = np.random.default_rng(0)
    queries, candidates = unit(rng, 6, 5), unit(rng, 11, 5)
    neutral = {
        "target_id": np.arange(11, dtype=np.uint32)[::-1].copy(),
        "explicit_negatives": np.full((6, 3), -1, np.int32),
        "candidate_mask": np.ones(11, bool),
    }
    positive = np.arange(6, dtype=np.int32)
    run = compiled(**OPTIONS[name])
    left = run(queries, candidates, positive, neutral)
    right = run(queries, candidates, None, {})
    jax.tree.map(np.testing.assert_array_equal, left, right)


# --- what follows from the definition ---------------------------------------------------------


def test_gradients_are_those_of_the_loss():
    """By finite differences; without hardness, whose stop_gradient they would not see."""
    rng = np.random.default_rng(3)
    queries, candidates, positive, arrays = random_arguments(rng, 6, 11)
    options = {"hard_negatives": 3, "false_negative_margin": 0.2, "symmetric": True}
    assert reference(queries, candidates, positive, **arrays, **options).closest > 5e-3

    @jax.jit
    def loss(queries, candidates):
        return contrastive(queries, candidates, positive, temperature=0.5, **arrays, **options)[0]

    check_grads(loss, (queries, candidates), order=1, modes=["rev"], eps=1e-3, rtol=1e-2)


def test_a_query_without_negatives_counts_for_nothing():
    rng = np.random.default_rng(1)
    queries, candidates = unit(rng, 6, 5), unit(rng, 11, 5)
    target_id = np.arange(11, dtype=np.uint32)
    positive = np.arange(6, dtype=np.int32)
    run = compiled(**OPTIONS["everything"])

    every = {
        "target_id": np.zeros_like(target_id),
        "explicit_negatives": np.full((6, 3), 7, np.int32),
        "candidate_mask": np.ones(11, bool),
    }
    (loss, metrics), grads = run(queries, candidates, positive, every)
    assert loss == 0
    assert metrics["rows_without_negatives"] == 6
    assert all(np.isfinite(value) for value in metrics.values())
    for grad in grads:
        np.testing.assert_array_equal(grad, 0)

    # One lonely query: its similarity to its own positive is pulled by nobody.
    keep = np.zeros(11, bool)
    keep[0] = True  # the only negative there is, and query 0's own positive
    run = compiled(temperature=0.1)
    (loss, metrics), (gq, _) = run(
        queries, candidates, positive, {"target_id": target_id, "candidate_mask": keep}
    )
    assert metrics["rows_without_negatives"] == 1
    np.testing.assert_array_equal(gq[0], 0)
    gap = np.einsum("bd,bd->b", queries[1:], candidates[0] - candidates[1:6]) / 0.1
    np.testing.assert_allclose(loss, np.logaddexp(0, gap).mean(), rtol=1e-5)


def test_the_margin_spares_labelled_negatives_only():
    queries = np.array([[1, 0]], np.float32)
    candidates = np.array([[0.6, 0.8], [0.8, 0.6], [0.96, 0.28]], np.float32)
    positive = np.zeros(1, np.int32)
    run = compiled(temperature=1.0, false_negative_margin=0.1)
    for labelled, negatives in (([-1], []), ([1], [0.8]), ([2], [0.96]), ([0], [])):
        arrays = {"explicit_negatives": np.array([labelled], np.int32)}
        (loss, metrics), _ = run(queries, candidates, positive, arrays)
        wanted = np.log(1 + np.exp(np.array(negatives) - 0.6).sum())
        np.testing.assert_allclose(loss, wanted, rtol=1e-6)
        assert metrics["negatives_per_query"] == len(negatives)
        assert metrics["masked_share"] == 1


@pytest.mark.parametrize("k", [None, 1])
def test_logits_far_apart_do_not_overflow(k):
    vectors = np.array([[1, 0], [-1, 0]], np.float32)
    run = compiled(temperature=0.01, hard_negatives=k)
    for positive, expected in ((0, 0), (1, 200)):
        (loss, _), grads = run(vectors[:1], vectors, np.array([positive], np.int32), {})
        assert loss == expected
        assert all(np.isfinite(grad).all() for grad in grads)


def test_a_tie_with_the_positive_is_kept_by_the_margin_and_loses():
    vectors = np.array([[1, 0], [1, 0]], np.float32)
    run = compiled(temperature=1.0, false_negative_margin=0.0)
    (loss, metrics), _ = run(vectors[:1], vectors, None, {})
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    assert metrics["masked_share"] == 0
    assert metrics["batch_accuracy"] == 0


@settings(max_examples=20, deadline=None)
@given(seed=strategies.integers(0, 2**32 - 1))
def test_the_order_of_pairs_and_candidates_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    queries, candidates, positive, arrays = random_arguments(rng, 6, 11)
    options = OPTIONS["everything"]
    assume(reference(queries, candidates, positive, **arrays, **options).closest > 1e-5)
    rows, columns = rng.permutation(6), rng.permutation(11)
    place = np.argsort(columns).astype(np.int32)
    explicit = arrays["explicit_negatives"][rows]
    moved = {
        "target_id": arrays["target_id"][columns],
        "explicit_negatives": np.where(explicit < 0, -1, place[explicit]),
        "candidate_mask": arrays["candidate_mask"][columns],
    }
    run = compiled(**options)
    (loss, metrics), (gq, gc) = run(queries, candidates, positive, arrays)
    (loss2, metrics2), (gq2, gc2) = run(
        queries[rows], candidates[columns], place[positive[rows]], moved
    )
    np.testing.assert_allclose(loss, loss2, rtol=1e-5, atol=1e-6)
    assert_grad(gq2, gq[rows])
    assert_grad(gc2, gc[columns])
    for name in metrics:
        np.testing.assert_allclose(metrics[name], metrics2[name], rtol=1e-5, atol=1e-6)


def test_half_precision_embeddings_are_compared_in_float32():
    rng = np.random.default_rng(0)
    queries, candidates = (jnp.asarray(unit(rng, n, 5), jnp.bfloat16) for n in (6, 11))
    run = compiled(temperature=0.02)
    (loss, _), _ = run(queries, candidates, None, {})
    (exact, _), _ = run(queries.astype(jnp.float32), candidates.astype(jnp.float32), None, {})
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, exact)


# --- on a mesh --------------------------------------------------------------------------------


def on_mesh(tree):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    return mesh, jax.device_put(tree, rows)


@pytest.mark.parametrize("name", ["hardness", "everything"])
def test_a_mesh_changes_nothing(name):
    assert jax.device_count() == 8
    inputs = random_arguments(np.random.default_rng(5), 16, 24, width=8)
    assert reference(*inputs[:3], **inputs[3], **OPTIONS[name]).closest > 1e-5
    run = compiled(**OPTIONS[name])
    (loss, metrics), grads = run(*inputs)
    mesh, sharded = on_mesh(inputs)
    with jax.set_mesh(mesh):
        (loss2, metrics2), grads2 = run(*sharded)
    np.testing.assert_allclose(loss, loss2, rtol=1e-6)
    jax.tree.map(assert_grad, grads2, grads)
    for key in metrics:
        np.testing.assert_allclose(metrics[key], metrics2[key], rtol=1e-6, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("name", ["hardness", "everything"])
def test_scores_stay_split_by_rows(name):
    """Embeddings travel, scores do not: a device has its 2 of 16 rows, never 5 of 40 columns."""
    inputs = random_arguments(np.random.default_rng(5), 16, 40, width=8)
    mesh, sharded = on_mesh(inputs)
    with jax.set_mesh(mesh):
        text = compiled(**OPTIONS[name]).lower(*sharded).compile().as_text()
    assert "f32[2,40]" in text
    assert "f32[16,5]" not in text
    if name == "hardness":  # top_k of this platform wants all rows; a TPU's does not
        assert "f32[16,40]" not in text
        assert "f32[16,16]" not in text


# --- arguments that cannot be meant -----------------------------------------------------------


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("temperature is 0", {"temperature": 0}),
        ("temperature is nan", {"temperature": float("nan")}),
        ("hard_negatives is 0", {"hard_negatives": 0}),
        ("same D", {"queries": np.zeros((4, 3), np.float32)}),
        ("same D", {"queries": np.zeros(5, np.float32)}),
        ("0 queries", {"queries": np.zeros((0, 5), np.float32), "positive": np.zeros(0, int)}),
        ("only 6 candidates", {"queries": np.zeros((7, 5), np.float32)}),
        (r"positive is int32\[5\]; .*\[B\]", {"positive": np.zeros(5, np.int32)}),
        (r"positive is float32\[4\]", {"positive": np.zeros(4, np.float32)}),
        (r"target_id is int32\[4\]; .*\[M\]", {"target_id": np.zeros(4, np.int32)}),
        (r"candidate_mask is int32\[6\]; .*booleans", {"candidate_mask": np.ones(6, np.int32)}),
        (
            r"explicit_negatives is int32\[4\]; .*\[B, H\]",
            {"explicit_negatives": np.zeros(4, np.int32)},
        ),
        (r"explicit_negatives is int32\[6,", {"explicit_negatives": np.zeros((6, 2), np.int32)}),
    ],
)
def test_impossible_arguments(message, change):
    good = {"queries": np.zeros((4, 5), np.float32), "candidates": np.zeros((6, 5), np.float32)}
    arguments = good | change
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda queries, candidates: contrastive(
                queries,
                candidates,
                **{k: v for k, v in arguments.items() if k not in good},
            ),
            arguments["queries"],
            arguments["candidates"],
        )


# --- what a run that learns nothing shows, and losses by source ---------------------------------


@pytest.mark.parametrize("column_block", [None, 3])
@pytest.mark.parametrize("name", ["plain", "two_hardest", "more_than_columns", "hardness"])
def test_the_loss_of_a_constant_model_is_that_of_chance(name, column_block):
    one = np.repeat(unit(np.random.default_rng(0), 1, 5), 8, axis=0)
    loss, metrics = contrastive(one, one, **OPTIONS[name], column_block=column_block)
    np.testing.assert_allclose(loss, metrics["chance_loss"], rtol=1e-5)
    if name == "two_hardest":
        np.testing.assert_allclose(loss, np.log(3), rtol=1e-5)


@pytest.mark.parametrize("column_block", [None, 4])
@pytest.mark.parametrize("name", ["plain", "two_hardest"])
def test_losses_by_source_are_means_over_their_queries(name, column_block):
    rng = np.random.default_rng(5)
    queries, candidates = unit(rng, 6, 5), unit(rng, 11, 5)
    source = np.array([0, 2, 0, 2, 2, 0], np.int32)
    options = {"positive": np.arange(6, dtype=np.int32), "column_block": column_block} | OPTIONS[
        name
    ]
    loss, metrics = contrastive(queries, candidates, source=source, sources=3, **options)
    assert metrics["source_rows"].tolist() == [3, 0, 3] and metrics["source_loss"][1] == 0
    np.testing.assert_allclose(np.mean(metrics["source_loss"][np.array([0, 2])]), loss, rtol=1e-5)
    other, others = contrastive(queries, candidates, **options)
    assert loss == other and "source_loss" not in others
