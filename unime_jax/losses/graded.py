"""CoSENT, the loss of graded pairs, plain and with comparisons weighted by the gap of grades."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Integer

from unime_jax.losses import ring
from unime_jax.losses.rows import Metrics, by_source, live_mean

GradedForm = Literal["gap_weighted_cosent", "cosent"]


class _Pairs(NamedTuple):
    score: Float32[Array, " B"]
    grade: Float32[Array, " B"]
    source: Int[Array, " B"]
    live: Bool[Array, " B"]


class _Sums(NamedTuple):
    """Of each pair's comparisons: of exp(logit - top), of weights, how many, how many are right."""

    total: Float32[Array, " B"]
    weight: Float32[Array, " B"]
    compared: Int[Array, " B"]
    right: Int[Array, " B"]


def graded_pairs(
    scores: Float[Array, " B"],
    grades: Float[Array, " B"],
    *,
    form: GradedForm = "gap_weighted_cosent",
    temperature: float = 0.05,
    smallest_gap: float = 1e-3,
    mask: Bool[Array, " B"] | None = None,
    source: Integer[Array, " B"] | None = None,
    sources: int = 0,
    row_block: int | None = None,
) -> tuple[Float32[Array, ""], Metrics]:
    """CoSENT: pairs of a higher grade are to have higher cosines than those of a lower one.

    With s_i the score and y_i the grade of pair i, "cosent" is

        log(1 + sum over i, j with y_i > y_j of exp((s_j - s_i) / temperature))

    (Qwen3-VL-Embedding), in which the order of grades counts alone. "gap_weighted_cosent" is the
    mean over pairs i of the same log, over all j of another grade, with each summand weighted by
    max(|y_i - y_j|, smallest_gap) (WeMM-Embedding, arXiv 2608.24053). Pairs of different sources
    are not compared, as their scales may differ; "cosent" is the mean over pairs of their source's
    logarithm. A pair that no other differs from in grade has the loss 0, and no gradient.

    Args:
      scores: cosines of the pairs.
      grades: how alike the sides of each pair are, on any scale; constants.
      temperature: divides differences of cosines; greater than 0.
      smallest_gap: the least weight, in units of the grades; greater than 0.
      mask: False for pairs that are not graded, whose grade is not read.
      source: each pair's number of where it comes from, in [0, sources); None: all from one.
      sources: how many there are.
      row_block: pairs that are compared with all at a time, on a device: the same values without a
        [B, B] array. None: all at once.

    Returns:
      The loss, the mean over graded pairs, and metrics without gradient, float32 []:
      `graded_pairs`, how many there are; `graded_agreement`, the share of comparisons in which the
      cosines are in the order of the grades; `chance_loss`, the loss if all cosines were equal.
      With `source`, float32 [sources]: `source_loss` and `source_rows`.

    Raises:
      ValueError: on shapes or settings that cannot be meant; under jit, while tracing.
    """
    _check(scores, grades, form, temperature, smallest_gap, row_block)
    live = jnp.ones(scores.shape, bool) if mask is None else mask
    where = jnp.zeros(scores.shape, jnp.int32) if source is None else jnp.asarray(source)
    grades = jax.lax.stop_gradient(jnp.where(live, grades.astype(jnp.float32), 0))
    pairs = _Pairs(scores.astype(jnp.float32), grades, where, live)
    both_ways = form == "gap_weighted_cosent"
    gap = smallest_gap if both_ways else None
    fixed = jax.lax.stop_gradient(pairs)
    top = _by_row(lambda own, rest: _top(own, rest, temperature, gap), fixed, fixed, row_block)
    number = max(sources, 1)
    if not both_ways:
        top = _of_source("max", top, where, number)

    def sums(own: tuple[_Pairs, Array], rest: _Pairs) -> _Sums:
        return _sums(*own, rest, temperature, gap)

    found = _by_row(sums, (pairs, top), pairs, row_block)
    total, weight = found.total, found.weight
    if not both_ways:
        total, weight = (_of_source("sum", x, where, number) for x in (total, weight))
    losses = jnp.where(live, top + jnp.log(jnp.exp(-top) + total), 0)
    chance = jnp.log1p(weight)
    compared = found.compared.astype(jnp.float32).sum()
    metrics = {
        "graded_pairs": live.sum().astype(jnp.float32),
        "graded_agreement": found.right.astype(jnp.float32).sum() / jnp.maximum(compared, 1),
        "chance_loss": live_mean(chance, live),
    }
    if source is not None and sources:
        metrics |= by_source(losses, live, where, sources)
    return live_mean(losses, live), metrics


def _compare(
    own: _Pairs, rest: _Pairs, temperature: float, smallest_gap: float | None
) -> tuple[Bool[Array, " B"], Float32[Array, " B"], Float32[Array, " B"]]:
    """Which pairs one pair is compared with, the logits without weights, and the weights.

    Without `smallest_gap` those of a lower grade alone, all with weight 1.
    """
    gap = own.grade - rest.grade
    keep = (gap > 0) if smallest_gap is None else (gap != 0)
    keep &= own.live & rest.live & (own.source == rest.source)
    logits = jnp.sign(gap) * (rest.score - own.score) / temperature
    least = jnp.ones_like(gap) if smallest_gap is None else jnp.maximum(abs(gap), smallest_gap)
    return keep, logits, least


def _top(
    own: _Pairs, rest: _Pairs, temperature: float, smallest_gap: float | None
) -> Float32[Array, ""]:
    """A pair's highest logit, 0 at least."""
    keep, logits, weight = _compare(own, rest, temperature, smallest_gap)
    return jnp.where(keep, logits + jnp.log(weight), 0).max(initial=0)


def _sums(
    own: _Pairs,
    top: Float32[Array, ""],
    rest: _Pairs,
    temperature: float,
    smallest_gap: float | None,
) -> _Sums:
    keep, logits, weight = _compare(own, rest, temperature, smallest_gap)
    exponent = jnp.where(keep, logits + jnp.log(weight) - top, -jnp.inf)
    return _Sums(
        jnp.exp(exponent).sum(),
        jnp.where(keep, weight, 0).sum(),
        keep.sum(),
        (keep & (logits < 0)).sum(),
    )


def _by_row(function: Callable, rows: Any, rest: _Pairs, row_block: int | None) -> Any:
    """`function` of each row and all pairs, a device's own rows on each."""

    def of_rows(rows: Any, rest: _Pairs) -> Any:
        def of_row(row: Any) -> Any:
            return function(row, rest)

        if row_block is None:
            return jax.vmap(of_row)(rows)
        return jax.lax.map(jax.checkpoint(of_row), rows, batch_size=row_block)

    return ring.own_rows(of_rows, rows, rest)


def _of_source(
    how: Literal["max", "sum"], values: Float32[Array, " B"], source: Int[Array, " B"], sources: int
) -> Float32[Array, " B"]:
    """For each pair, the values of all of its source combined; none is below 0."""
    own = jnp.where(source == jnp.arange(sources)[:, None], values, 0)
    reduced = own.max(axis=1) if how == "max" else own.sum(axis=1)
    return reduced[source]


def _check(scores, grades, form, temperature, smallest_gap, row_block) -> None:
    if form not in get_args(GradedForm):
        raise ValueError(f"graded_pairs: form is {form!r}; use one of {get_args(GradedForm)}")
    if scores.ndim != 1 or scores.shape != grades.shape:
        raise ValueError(
            f"graded_pairs: scores are {scores.shape}, grades {grades.shape}; they must be [B] of "
            "the same pairs"
        )
    for name, value in (("temperature", temperature), ("smallest_gap", smallest_gap)):
        if not value > 0:
            raise ValueError(f"graded_pairs: {name} is {value}; it must be above 0")
    if row_block is not None and row_block < 1:
        raise ValueError(
            f"graded_pairs: row_block is {row_block}; give 1 or more pairs, or None for all"
        )
