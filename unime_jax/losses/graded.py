"""Losses of graded pairs and ranked lists: CoSENT, and listwise KL to a reranker's scores."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from unime_jax.losses.rows import live_mean


def cosent(
    scores: Float[Array, " B"],
    grades: Float[Array, " B"],
    *,
    temperature: float = 0.05,
    mask: Bool[Array, " B"] | None = None,
) -> Float32[Array, ""]:
    """CoSENT: log(1 + sum of exp((s_j - s_i) / temperature)) over pairs i, j of grades y_i > y_j.

    Only the order of the grades counts. 0 where all grades are equal.

    Args:
      scores: cosines of the pairs.
      grades: how alike the sides of each pair are, on any scale; a constant.
      temperature: divides differences of cosines; greater than 0.
      mask: False for padding.

    Raises:
      ValueError: on shapes or a temperature that cannot be meant; while tracing.
    """
    logits, keep, _ = _inversions(scores, grades, temperature, mask)
    return _log_sum(logits.reshape(1, -1), keep.reshape(1, -1))[0]


def gap_weighted_cosent(
    scores: Float[Array, " B"],
    grades: Float[Array, " B"],
    *,
    temperature: float = 0.05,
    smallest_gap: float = 1e-3,
    mask: Bool[Array, " B"] | None = None,
) -> Float32[Array, ""]:
    """CoSENT by pair, each comparison weighted by the gap of its grades (WeMM-Embedding).

    The mean over pairs i of log(1 + sum of w_ij exp(g / temperature)) over the pairs j of another
    grade, with g the score of the one with the lower grade less that of the other, and w_ij =
    max(|y_i - y_j|, smallest_gap). Pairs that no other pair differs from in grade count for 0.

    Args:
      smallest_gap: the least weight; greater than 0.
      scores, grades, temperature, mask: as of `cosent`.

    Raises:
      ValueError: on shapes, a temperature or a gap that cannot be meant; while tracing.
    """
    if not smallest_gap > 0:
        raise ValueError(f"gap_weighted_cosent: smallest_gap is {smallest_gap}; it must be above 0")
    logits, keep, gap = _inversions(scores, grades, temperature, mask)
    logits += jnp.log(jnp.maximum(jnp.abs(gap), smallest_gap))
    both = jnp.concatenate([logits, logits.T], axis=1)
    losses = _log_sum(both, jnp.concatenate([keep, keep.T], axis=1))
    return losses.mean() if mask is None else live_mean(losses, mask)


def listwise_distillation(
    scores: Float[Array, "B M"],
    teacher: Float[Array, "B M"],
    *,
    temperature: float = 0.02,
    teacher_temperature: float = 1.0,
    mask: Bool[Array, "B M"] | None = None,
) -> Float32[Array, ""]:
    """KL(teacher || student) of each query's list of candidates, the mean over queries (Rank-KL).

    Its gradient is that of the cross-entropy of Qwen3-VL-Embedding's eq. 3. A query with fewer
    than two candidates counts for nothing.

    Args:
      scores: cosines of each query with its candidates.
      teacher: a reranker's scores of the same, of any size; a constant.
      temperature: divides the cosines; greater than 0.
      teacher_temperature: divides the teacher's scores; greater than 0.
      mask: False where a list has no candidate.

    Raises:
      ValueError: on shapes or temperatures that cannot be meant; while tracing.
    """
    if scores.ndim != 2 or scores.shape != teacher.shape:
        raise ValueError(
            f"listwise_distillation: scores are {scores.shape}, the teacher's {teacher.shape}; "
            "they must be [B, M] of the same candidates"
        )
    for name, value in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
        if not value > 0:
            raise ValueError(f"listwise_distillation: {name} is {value}; it must be above 0")
    keep = jnp.ones(scores.shape, bool) if mask is None else mask
    lowest = jnp.finfo(jnp.float32).min

    def log_softmax(x: Array, heat: float) -> Array:
        return jax.nn.log_softmax(jnp.where(keep, x.astype(jnp.float32) / heat, lowest), axis=1)

    student = log_softmax(scores, temperature)
    wanted = jax.lax.stop_gradient(log_softmax(teacher, teacher_temperature))
    gap = jnp.where(keep, jnp.exp(wanted) * (wanted - student), 0)
    return live_mean(gap.sum(axis=1), keep.sum(axis=1) > 1)


def _inversions(
    scores: Array, grades: Array, temperature: float, mask: Array | None
) -> tuple[Float32[Array, "B B"], Bool[Array, "B B"], Float32[Array, "B B"]]:
    """(s_j - s_i) / temperature; whether y_i > y_j; and y_i - y_j."""
    if scores.ndim != 1 or scores.shape != grades.shape:
        raise ValueError(
            f"cosent: scores are {scores.shape}, grades {grades.shape}; they must be [B] of the "
            "same pairs"
        )
    if not temperature > 0:
        raise ValueError(f"cosent: temperature is {temperature}; it must be above 0")
    scores = scores.astype(jnp.float32)
    gap = jax.lax.stop_gradient(grades.astype(jnp.float32))
    gap = gap[:, None] - gap
    keep = gap > 0
    if mask is not None:
        keep &= mask[:, None] & mask
    return (scores - scores[:, None]) / temperature, keep, gap


def _log_sum(
    logits: Float32[Array, "rows columns"], keep: Bool[Array, "rows columns"]
) -> Float32[Array, " rows"]:
    """log(1 + sum of exp) of those that are kept; 0, with gradient 0, of none."""
    logits = jnp.where(keep, logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.maximum(logits.max(axis=1), 0))
    return top + jnp.log(jnp.exp(-top) + jnp.exp(logits - top[:, None]).sum(axis=1))
