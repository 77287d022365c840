"""InfoNCE as three plain loops in float64, the arguments that it is tried on, and its bounds."""

import dataclasses
import functools
from collections.abc import Callable

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

# Of masks, terms and pools; 6 pairs.
MORE_OPTIONS = {
    "terms": {
        "temperature": 0.1,
        "query_query": True,
        "document_document": True,
        "false_negative_margin": 0.1,
        "query_query_margin": 0.2,
        "document_document_margin": -0.1,
    },
    "duplicates": {
        "temperature": 0.1,
        "duplicate_queries": 0.4,
        "duplicate_targets": 0.5,
        "symmetric": True,
        "trust_explicit": False,
        "false_negative_margin": 0.3,
    },
    "pools": {"temperature": 0.1, "pool": 2, "symmetric": True},
    "explicit_hardness": {"hardness": 5.0, "hardness_on": "explicit", "query_query": True},
    "hardest_of_all": {
        "temperature": 0.1,
        "query_query": True,
        "document_document": True,
        "query_query_margin": 0.2,
        "hard_negatives": 5,
        "hardness": 5.0,
        "hardness_on": "explicit",
        "duplicate_queries": 0.6,
        "duplicate_targets": 0.6,
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
    grad_temperature: np.ndarray  # by row
    metrics: dict[str, float]
    closest: float  # the smallest distance of a score from a decision that rounding could turn


@dataclasses.dataclass
class Term:
    """Scores of rows and columns, and what is said of the column j of row i."""

    scores: np.ndarray
    is_other: Callable[[int, int], bool]  # no copy of the positive, no padding, no fact against it
    is_labelled: Callable[[int, int], bool]
    margin: float | None
    like_query: Callable[[int, int], bool]
    like_target: Callable[[int, int], bool]


def loop(terms, positive, of, temperature, k, hardness, hardness_on="all", trust_explicit=True):
    """One direction: losses by row, gradients of their mean by score and temperature, metrics."""
    scores = terms[0].scores
    losses, gradients = np.full(len(scores), np.nan), [np.zeros_like(t.scores) for t in terms]
    by_temperature = np.zeros(len(scores))
    chances, metrics, closest = [], [], 1.0
    dropped = like_query = like_target = candidates = 0
    for i in np.flatnonzero(of):
        s_pos, negatives = scores[i, positive[i]], []
        for number, term in enumerate(terms):
            for j, s in enumerate(term.scores[i]):
                if not term.is_other(i, j):
                    continue
                labelled = term.is_labelled(i, j)
                if labelled and trust_explicit:
                    negatives.append((s, number, j, labelled))
                    continue
                candidates += 1
                reasons = term.like_query(i, j), term.like_target(i, j)
                like_query, like_target = like_query + reasons[0], like_target + reasons[1]
                if term.margin is not None:
                    closest = min(closest, abs(s - s_pos - term.margin))
                    if s > s_pos + term.margin:
                        dropped += 1
                        continue
                if not any(reasons):
                    negatives.append((s, number, j, labelled))
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
        weights = [hardness if hardness_on == "all" or kind[3] else 0 for kind in kept]
        logits = [
            (s - s_pos) / temperature[i] + weight * s
            for (s, *_), weight in zip(kept, weights, strict=True)
        ]
        top = max(0.0, *logits)
        total = np.exp(-top) + sum(np.exp(logit - top) for logit in logits)
        losses[i] = top + np.log(total)
        chances.append(np.log(1 + sum(np.exp(weight * s_pos) for weight in weights)))
        for logit, (s, number, j, _) in zip(logits, kept, strict=True):
            share = np.exp(logit - top) / total / temperature[i]
            gradients[number][i, j] += share
            gradients[0][i, positive[i]] -= share
            by_temperature[i] -= share * (s - s_pos) / temperature[i]
    s_pos, hard, easy, count = zip(*metrics, strict=True) if metrics else ((), (), (), ())
    live = [i for i, c in enumerate(count) if c]

    def mean(values):
        return sum(values) / max(1, len(values))

    summary = {
        "positive_similarity": mean(s_pos),
        "hard_negative_similarity": mean([hard[i] for i in live]),
        "easy_negative_similarity": mean([easy[i] for i in live]),
        "negatives_per_query": mean(count),
        "masked_share": dropped / max(1, candidates),
        "duplicate_query_share": like_query / max(1, candidates),
        "duplicate_target_share": like_target / max(1, candidates),
        "rows_without_negatives": len(count) - len(live),
        "batch_accuracy": mean([s_pos[i] > hard[i] for i in live]),
        "chance_loss": mean(chances),
    }
    share = 1 / max(1, len(live))
    return losses, [g * share for g in gradients], by_temperature * share, summary, closest


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
    hardness_on="all",
    symmetric=False,
    query_query=False,
    query_query_margin=None,
    document_document=False,
    document_document_margin=None,
    duplicate_queries=None,
    duplicate_targets=None,
    trust_explicit=True,
    pool=None,
    target_id=None,
    query_id=None,
    closed=None,
    pair_mask=None,
    explicit_negatives=None,
    candidate_mask=None,
):
    """`contrastive`, written out."""
    queries, candidates = queries.astype(np.float64), candidates.astype(np.float64)
    pairs, columns = len(queries), len(candidates)
    temperature = np.broadcast_to(np.asarray(temperature, np.float64), pairs)
    target_id = np.arange(columns) if target_id is None else target_id
    query_id = np.arange(pairs) if query_id is None else query_id
    closed = np.zeros(pairs, bool) if closed is None else closed
    explicit = np.zeros((pairs, 0), int) if explicit_negatives is None else explicit_negatives
    mask = np.ones(columns, bool) if candidate_mask is None else candidate_mask
    of = np.ones(pairs, bool) if pair_mask is None else pair_mask
    by_query, own = queries @ queries.T, candidates[positive]
    by_target, to_column = own @ own.T, own @ candidates.T

    def targets(j):
        return target_id[positive[j]]

    def near(scores, threshold, i, j):
        return threshold is not None and scores[i, j] > threshold

    def in_pool(i, j):
        return pool is None or i // pool == j // pool

    def owners(column):
        """Pairs whose target the column is."""
        return [j for j in np.flatnonzero(of) if targets(j) == target_id[column]]

    def pool_has(i, column):
        members = (
            c
            for j in np.flatnonzero(of)
            if in_pool(i, j)
            for c in (positive[j], *explicit[j])
            if c >= 0
        )
        return pool is None or any(target_id[c] == target_id[column] for c in members)

    def is_labelled(i, column):
        return column in explicit[i]

    def column_is_other(i, column):
        return (
            target_id[column] != targets(i)
            and mask[column]
            and pool_has(i, column)
            and not any(query_id[i] == query_id[j] for j in owners(column))
        )

    def pair_is_other(i, j):
        return (
            targets(i) != targets(j)
            and in_pool(i, j)
            and query_id[i] != query_id[j]
            and not closed[i]
            and of[j]
        )

    def never(i, j):
        return False

    def like_a_query(i, column):
        return any(near(by_query, duplicate_queries, i, j) for j in owners(column))

    pair_masks = (
        lambda i, j: near(by_query, duplicate_queries, i, j),
        lambda i, j: near(by_target, duplicate_targets, i, j),
    )
    column_masks = like_a_query, lambda i, column: near(to_column, duplicate_targets, i, column)
    terms = [
        Term(
            queries @ candidates.T,
            lambda i, j: column_is_other(i, j) and (is_labelled(i, j) or not closed[i]),
            is_labelled,
            false_negative_margin,
            *column_masks,
        )
    ]
    if query_query:
        terms.append(Term(by_query, pair_is_other, never, query_query_margin, *pair_masks))
    if document_document:
        others = Term(
            to_column,
            lambda i, j: column_is_other(i, j) and not closed[i],
            never,
            document_document_margin,
            *column_masks,
        )
        terms.append(others)
    rules = (temperature, hard_negatives, hardness, hardness_on, trust_explicit)
    losses, gradients, by_temperature, metrics, closest = loop(terms, positive, of, *rules)
    loss, back = mean_loss(losses), None
    kinds = ["qc", *["qq"] * query_query, *["dc"] * document_document]
    weights = [1.0] * len(kinds)
    if symmetric:
        margin = false_negative_margin
        term = Term(own @ queries.T, pair_is_other, never, margin, *pair_masks)
        back, more, back_temperature, others, near_call = loop([term], np.arange(pairs), of, *rules)
        loss, closest = (loss + mean_loss(back)) / 2, min(closest, near_call)
        metrics["chance_loss"] = (metrics["chance_loss"] + others["chance_loss"]) / 2
        gradients, kinds = gradients + more, [*kinds, "dq"]
        weights = [0.5] * len(kinds)
        by_temperature = (by_temperature + back_temperature) / 2
    grad_q, grad_c = np.zeros_like(queries), np.zeros_like(candidates)
    grad_own = np.zeros_like(own)
    sides = {"q": (queries, grad_q), "c": (candidates, grad_c), "d": (own, grad_own)}
    for (row, column), weight, gradient in zip(kinds, weights, gradients, strict=True):
        sides[row][1][...] += weight * gradient @ sides[column][0]
        sides[column][1][...] += weight * gradient.T @ sides[row][0]
    np.add.at(grad_c, positive, grad_own)
    for scores, threshold in (
        (by_query, duplicate_queries),
        (by_target, duplicate_targets),
        (to_column, duplicate_targets),
    ):
        if threshold is not None:
            closest = min(closest, np.abs(scores - threshold).min())
    for name, threshold in (("query", duplicate_queries), ("target", duplicate_targets)):
        if threshold is None:
            del metrics[f"duplicate_{name}_share"]
    return Reference(loss, losses, back, grad_q, grad_c, by_temperature, metrics, closest)


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def random_arguments(rng, pairs=6, columns=11, width=5, ids=8, masked=0.2, labels=3, facts=False):
    """Queries, candidates and positives; repeated targets, labelled negatives, padding."""
    explicit = rng.integers(-1, columns, (pairs, labels), dtype=np.int32)
    explicit[rng.random((pairs, labels)) < 0.3] = -1
    arrays = {
        "target_id": rng.integers(0, ids, columns, dtype=np.uint32),
        "explicit_negatives": explicit,
        "candidate_mask": rng.random(columns) >= masked,
    }
    positive = rng.integers(0, columns, pairs, dtype=np.int32)
    if facts:  # of pairs: equal queries, closed sets, pairs of other losses, temperatures
        arrays["query_id"] = rng.integers(0, pairs, pairs, dtype=np.uint32)
        arrays["closed"] = rng.random(pairs) < 0.3
        arrays["pair_mask"] = rng.random(pairs) < 0.8
        arrays["temperature"] = rng.uniform(0.1, 0.5, pairs).astype(np.float32)
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
