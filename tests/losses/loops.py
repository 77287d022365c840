"""InfoNCE as three plain loops in float64, the arguments that it is tried on, and its bounds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.float32 import ROUNDING, UNIT_ROUNDOFF
from unime_jax.losses import contrastive

# Every path of the loss; compiled once a module for each set of shapes.
OPTIONS = {
    "plain": {},
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


@dataclasses.dataclass
class Reference:
    loss: float
    by_query: np.ndarray  # NaN of a query without negatives
    back_by_query: np.ndarray | None  # of the other direction
    grad_queries: np.ndarray
    grad_candidates: np.ndarray
    metrics: dict[str, float]
    closest: float  # the smallest distance of a score from a decision that rounding could turn


def loop(scores, positive, is_other, is_labelled, temperature, k, margin, hardness):
    """One direction: losses by row, the gradient of their mean by score, metrics, closest call."""
    losses, gradient = np.full(len(scores), np.nan), np.zeros_like(scores)
    chances, metrics, closest = [], [], 1.0
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
        losses[i] = top + np.log(total)
        chances.append(np.log(1 + len(kept) * np.exp(hardness * s_pos)))
        for logit, (_, j) in zip(logits, kept, strict=True):
            share = np.exp(logit - top) / total / temperature
            gradient[i, j] += share
            gradient[i, positive[i]] -= share
    s_pos, hard, easy, count = zip(*metrics, strict=True)
    live = [i for i, c in enumerate(count) if c]

    def mean(values):
        return sum(values) / max(1, len(values))

    summary = {
        "positive_similarity": mean(s_pos),
        "hard_negative_similarity": mean([hard[i] for i in live]),
        "easy_negative_similarity": mean([easy[i] for i in live]),
        "negatives_per_query": mean(count),
        "masked_share": dropped / max(1, candidates),
        "rows_without_negatives": len(count) - len(live),
        "batch_accuracy": mean([s_pos[i] > hard[i] for i in live]),
        "chance_loss": mean(chances),
    }
    return losses, gradient / max(1, len(live)), summary, closest


def mean_loss(losses):
    """Over the rows that have a negative; 0 over none."""
    live = losses[~np.isnan(losses)]
    return live.mean() if live.size else 0.0


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
    """`contrastive`, written out."""
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
    losses, gradient, metrics, closest = loop(scores, positive, is_other, is_labelled, *rules)
    loss, back = mean_loss(losses), None
    if symmetric:
        back, by_score, others, near = loop(
            scores[:, positive].T,
            np.arange(pairs),
            lambda i, j: i != j and not same(positive[i], positive[j]),
            lambda i, j: False,
            *rules,
        )
        loss = (loss + mean_loss(back)) / 2
        gradient, closest = gradient / 2, min(closest, near)
        metrics["chance_loss"] = (metrics["chance_loss"] + others["chance_loss"]) / 2
        for i in range(pairs):
            for j in range(pairs):
                gradient[j, positive[i]] += by_score[i, j] / 2
    return Reference(
        loss, losses, back, gradient @ candidates, gradient.T @ queries, metrics, closest
    )


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def random_arguments(rng, pairs=6, columns=11, width=5, ids=8, masked=0.2, labels=3):
    """Queries, candidates and positives; repeated targets, labelled negatives, padding."""
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
    """((loss, metrics), gradients) of queries, candidates, positives and a dict of arrays."""

    def loss(queries, candidates, positive, arrays):
        return contrastive(queries, candidates, positive, **arrays, **options)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def assert_reference(results, expected, options, what=""):
    """Results of `compiled` are those of the loops, but for float32 sums.

    A cosine is off by at most `width` unit roundoffs, which are far fewer than `ROUNDING`'s, and a
    logit by that divided by the temperature, or times the hardness. The loss is off by no more
    than a logit is, and each share of the softmax by no more relative to itself.
    """
    (loss, metrics), gradients = results
    width = np.shape(gradients[0])[-1]
    slack = 1 / options.get("temperature", 0.02) + options.get("hardness", 0.0)
    logit = 4 * width * UNIT_ROUNDOFF * slack  # errors of both cosines, and of their difference
    wanted = expected.grad_queries, expected.grad_candidates
    np.testing.assert_allclose(loss, expected.loss, rtol=ROUNDING / 16, atol=logit, err_msg=what)
    for actual, gradient in zip(gradients, wanted, strict=True):
        scale = max(1, np.abs(gradient).max(initial=0))
        np.testing.assert_allclose(actual, gradient, rtol=0, atol=logit * scale, err_msg=what)
    assert metrics.keys() == expected.metrics.keys(), what
    for name, value in metrics.items():
        assert value.shape == () and value.dtype == jnp.float32, (what, name)
        np.testing.assert_allclose(
            value, expected.metrics[name], rtol=1e-5, atol=1e-6, err_msg=f"{what} {name}"
        )
