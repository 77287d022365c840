"""Distillation of a judge's scores into the similarities of a query and its own candidates."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from unime_jax.losses.relational import masked_log_softmax
from unime_jax.losses.rows import Metrics, by_source, live_mean

JudgeForm = Literal["symmetric_kl", "rank_kl", "gap_weighted_cosent"]
EPSILON = 1e-8  # added to a probability before its logarithm, as UniME-V2's code does


def judge_distillation(
    scores: Float[Array, "B M"],
    judge: Float[Array, "B M"],
    *,
    form: JudgeForm = "symmetric_kl",
    temperature: float = 0.02,
    judge_temperature: float | None = None,
    smallest_gap: float = 1e-3,
    mask: Bool[Array, "B M"] | None = None,
    source: Int[Array, " B"] | None = None,
    sources: int = 0,
) -> tuple[Float32[Array, ""], Metrics]:
    """Divergence of a query's similarities from a judge's or a reranker's scores, by `form`.

    With P the softmax over a query's candidates of `scores / temperature`, and Q that of
    `judge / judge_temperature`, a query's loss is

    - "symmetric_kl": (KL(Q || P) + KL(P || Q)) / 2, in which the probability of the second
      distribution has `EPSILON` added before its logarithm (UniME-V2, arXiv 2510.13515; the paper
      calls it JS divergence, the code has this);
    - "rank_kl": KL(Q || P) (Rank-KL of CORE, arXiv 2609.04083). Its gradient is that of the
      cross-entropy of Qwen3-VL-Embedding's eq. 3;
    - "gap_weighted_cosent": log(1 + sum over its candidates i, j with judge_i > judge_j of w_ij
      exp((scores_j - scores_i) / temperature)), w_ij the greater of judge_i - judge_j and
      `smallest_gap` (WeMM-Embedding's rows of a reranker, arXiv 2608.24053).

    The mean is over queries with at least two candidates: a single one is in every order.

    Args:
      scores: similarities of a query with its positive, which is column 0, and its negatives.
      judge: of the same candidates, in [0, 1] as a probability of "yes", or a reranker's of any
        size; constants.
      temperature: of the similarities, greater than 0.
      judge_temperature: of the judge; None: the same. Not of "gap_weighted_cosent".
      smallest_gap: greater than 0; of "gap_weighted_cosent" alone.
      mask: False where a query has no candidate; None: all are there. What stands there is not
        read, but must be finite in `scores`.
      source: each query's number of where it comes from, in [0, sources); metrics only.
      sources: how many there are; 0: no loss by source.

    Returns:
      The loss, and metrics without gradient, float32 []: `positive_similarity` and
      `judge_positive`, means of column 0; `judge_entropy` and `student_entropy` of the mean query,
      in nats; `judge_agreement`, the share of queries whose best candidate is the same for both;
      `judged_queries`, how many have a loss; `chance_loss`, the loss of a student that finds all
      candidates equally similar. With `sources`, float32 [sources]: `source_loss`, and
      `source_rows`, each source's queries with a loss.

    Raises:
      ValueError: on shapes or settings that cannot be meant; under jit, while tracing.
    """
    judge_temperature = temperature if judge_temperature is None else judge_temperature
    if form not in get_args(JudgeForm):
        raise ValueError(f"judge_distillation: form is {form!r}; use one of {get_args(JudgeForm)}")
    for name, value in (
        ("temperature", temperature),
        ("judge_temperature", judge_temperature),
        ("smallest_gap", smallest_gap),
    ):
        if not value > 0:
            raise ValueError(f"judge_distillation: {name} is {value}; it must be above 0")
    keep = jnp.ones(scores.shape, bool) if mask is None else mask
    if scores.ndim != 2 or not scores.shape == judge.shape == keep.shape:
        raise ValueError(
            f"judge_distillation: scores {scores.shape}, judge {judge.shape} and mask"
            f" {keep.shape} must be [queries, candidates] of the same candidates"
        )
    live = keep.sum(axis=1) > 1
    own = scores.astype(jnp.float32)
    wanted = jax.lax.stop_gradient(jnp.where(keep, judge.astype(jnp.float32), 0))
    log_student = masked_log_softmax(own / temperature, keep)
    log_judge = masked_log_softmax(wanted / judge_temperature, keep)

    def by_query(scores: Array, log_scores: Array) -> Float32[Array, " B"]:
        if form == "gap_weighted_cosent":
            return _ordered(scores / temperature, wanted, keep, smallest_gap)
        if form == "rank_kl":
            return jnp.where(keep, jnp.exp(log_judge) * (log_judge - log_scores), 0).sum(axis=1)
        return _symmetric(log_scores, log_judge, keep)

    by_row = jnp.where(live, by_query(own, log_student), 0)
    loss = live_mean(by_row, live)
    even = -jnp.log(jnp.maximum(keep.sum(axis=1, keepdims=True), 1.0))
    fixed = jax.lax.stop_gradient(own)
    best = [jnp.where(keep, values, -jnp.inf).argmax(axis=1) for values in (fixed, wanted)]
    metrics = {
        "positive_similarity": live_mean(fixed[:, 0], live),
        "judge_positive": live_mean(wanted[:, 0], live),
        "judge_entropy": live_mean(_entropy(log_judge, keep), live),
        "student_entropy": live_mean(_entropy(jax.lax.stop_gradient(log_student), keep), live),
        "judge_agreement": live_mean(best[0] == best[1], live),
        "judged_queries": live.sum().astype(jnp.float32),
        "chance_loss": live_mean(by_query(jnp.zeros_like(own), jnp.where(keep, even, 0)), live),
    }
    if source is not None and sources:
        metrics |= by_source(by_row, live, source, sources)
    return loss, metrics


def _symmetric(
    log_p: Float32[Array, "B M"], log_q: Float32[Array, "B M"], keep: Bool[Array, "B M"]
) -> Float32[Array, " B"]:
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    forth = q * (log_q - jnp.log(p + EPSILON))
    back = p * (log_p - jnp.log(q + EPSILON))
    return jnp.where(keep, forth + back, 0).sum(axis=1) / 2


def _ordered(
    logits: Float32[Array, "B M"],
    judge: Float32[Array, "B M"],
    keep: Bool[Array, "B M"],
    smallest_gap: float,
) -> Float32[Array, " B"]:
    gap = judge[:, :, None] - judge[:, None]
    compared = (gap > 0) & keep[:, :, None] & keep[:, None]
    weighted = jnp.log(jnp.maximum(gap, smallest_gap)) + logits[:, None] - logits[:, :, None]
    count = logits.shape[1] ** 2
    weighted = jnp.where(compared, weighted, -jnp.inf).reshape(logits.shape[0], count)
    # The 1 of the logarithm is a logit of 0, so that it is finite where none is compared.
    return jax.nn.logsumexp(jnp.pad(weighted, ((0, 0), (1, 0))), axis=1)


def _entropy(log_p: Float32[Array, "B M"], keep: Bool[Array, "B M"]) -> Float32[Array, " B"]:
    return -jnp.where(keep, jnp.exp(log_p) * log_p, 0).sum(axis=1)
