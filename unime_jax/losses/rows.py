"""Per-row InfoNCE terms and their reduction over the batch."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Integer, UInt8

from unime_jax.losses import ring
from unime_jax.losses.barred import Barred
from unime_jax.losses.selection import Settings, select, temperature_of
from unime_jax.losses.similarity import cosines

Metrics = dict[str, Float32[Array, "..."]]  # scalars, and [sources] by source


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowLosses:
    """Per-row results.

    Only `losses` carries a gradient; other fields are undefined for rows without negatives.
    `positive`, `hard`, `easy`: similarities of the positive, the most and the least similar
    negative. `count`: negatives kept. `weighted`: how many summands have a weight by hardness,
    None: all. `unlabelled`: negatives that masks may drop; `dropped`: how many of those the margin
    dropped; `duplicate_query`, `duplicate_target`: these masks, None if they are off.
    """

    losses: Float32[Array, " B"]
    positive: Float32[Array, " B"]
    hard: Float32[Array, " B"]
    easy: Float32[Array, " B"]
    count: Int[Array, " B"]
    weighted: Int[Array, " B"] | None
    unlabelled: Int[Array, " B"]
    dropped: Int[Array, " B"]
    duplicate_query: Int[Array, " B"] | None
    duplicate_target: Int[Array, " B"] | None


class Term(NamedTuple):
    """A row's scores of some columns, and which of them may be its negatives."""

    scores: Float32[Array, "B columns"]
    available: Bool[Array, "B columns"]
    labelled: Bool[Array, "B columns"]
    barred: UInt8[Array, "B columns"] | None
    margin: float | None


def dense_rows(
    queries: Float32[Array, "B D"],
    candidates: Float32[Array, "M D"],
    positive: Integer[Array, " B"],
    target_id: Integer[Array, " M"],
    mask: Bool[Array, " M"],
    labelled: Integer[Array, "B H"],
    closed: Bool[Array, " B"] | None,
    pair_mask: Bool[Array, " B"] | None,
    temperature: Float32[Array, " B"] | None,
    barred: Barred,
    settings: Settings,
) -> tuple[RowLosses, RowLosses | None]:
    """Results of queries against candidates and, if symmetric, of positives against queries.

    `labelled` are explicit negatives by column, -1 for none; `temperature` is None where the
    settings have it; the other arguments as in `contrastive`.
    """
    positive_id = target_id[positive]
    available = target_id != positive_id[:, None]  # also leaves out the positive itself
    available &= mask
    is_labelled = (labelled[:, :, None] == jnp.arange(mask.size)).any(axis=1)
    margin = settings.false_negative_margin
    scores = cosines(queries, candidates)
    terms = [Term(scores, available, is_labelled, barred.columns, margin)]
    others = positive_id != positive_id[:, None]
    if pair_mask is not None:
        others &= pair_mask
    if settings.query_query:
        margin = settings.query_query_margin
        scores = cosines(queries, queries)
        terms.append(Term(scores, others, jnp.zeros_like(others), barred.pairs, margin))
    if settings.document_document:
        margin = settings.document_document_margin
        scores = cosines(candidates[positive], candidates)
        terms.append(Term(scores, available, jnp.zeros_like(available), barred.columns, margin))
    forth = _dense(terms, positive, closed, temperature, settings)
    if not settings.symmetric:
        return forth, None
    # A second product, not a transpose: rows stay rows, so top_k never crosses devices.
    scores = cosines(candidates[positive], queries)
    own = jnp.arange(positive.size)
    margin = settings.false_negative_margin
    back = Term(scores, others, jnp.zeros_like(others), barred.pairs, margin)
    return forth, _dense([back], own, closed, temperature, settings)


def _dense(
    terms: Sequence[Term],
    positive: Integer[Array, " B"],
    closed: Bool[Array, " B"] | None,
    temperature: Float32[Array, " B"] | None,
    settings: Settings,
) -> RowLosses:
    """Results of every row against the columns of all terms; the first has the positive."""
    positive_score = jnp.take_along_axis(terms[0].scores, positive[:, None], axis=1)
    fixed_positive = jax.lax.stop_gradient(positive_score)
    chosen = []
    for term in terms:
        fixed = jax.lax.stop_gradient(term.scores)
        chosen.append(
            select(
                fixed,
                fixed_positive,
                term.available,
                term.labelled,
                closed,
                term.barred,
                term.margin,
                settings,
            )
        )
    scores = _beside([term.scores for term in terms])
    fixed = jax.lax.stop_gradient(scores)
    valid = _beside([term.valid for term in chosen])
    labelled = _beside([term.labelled for term in terms])
    count = valid.sum(axis=1)
    if settings.hard_negatives is None:
        explicit = labelled if settings.weighs_explicit else None
        losses = _losses(scores, valid, explicit, positive_score[:, 0], temperature, settings)
        weighted = None if explicit is None else (valid & explicit).sum(axis=1)
    else:
        width = min(settings.hard_negatives, scores.shape[1])
        negative = jnp.where(valid, scores, -jnp.inf)
        # Row by row: left to itself, top_k gathers all rows on every device on some platforms.
        hardest, place = ring.own_rows(lambda own: jax.lax.top_k(own, width), negative)
        explicit = None
        if settings.weighs_explicit:
            explicit = jnp.take_along_axis(labelled, place, axis=1)
        losses, weighted = hardest_losses(
            hardest, explicit, positive_score[:, 0], temperature, count, settings
        )
    return RowLosses(
        losses=losses,
        positive=fixed_positive[:, 0],
        hard=jnp.where(valid, fixed, -jnp.inf).max(axis=1),
        easy=jnp.where(valid, fixed, jnp.inf).min(axis=1),
        count=count,
        weighted=weighted,
        unlabelled=_beside([term.unlabelled for term in chosen]).sum(axis=1),
        dropped=_beside([term.dropped for term in chosen]).sum(axis=1),
        duplicate_query=_total([term.duplicate_query for term in chosen]),
        duplicate_target=_total([term.duplicate_target for term in chosen]),
    )


def _beside(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _total(parts: Sequence[Bool[Array, "_ _"] | None]) -> Int[Array, " B"] | None:
    """Of each row; None where the mask is off."""
    given = [part.sum(axis=1) for part in parts if part is not None]
    return sum(given[1:], given[0]) if given else None


def hardest_losses(
    hardest: Float32[Array, "B K"],
    explicit: Bool[Array, "B K"] | None,
    positive: Float32[Array, " B"],
    temperature: Float32[Array, " B"] | None,
    count: Int[Array, " B"],
    settings: Settings,
) -> tuple[Float32[Array, " B"], Int[Array, " B"] | None]:
    """Losses against the hardest negatives in descending order; the first `count` are real.

    Beside them, how many of those that are kept have a weight, if `explicit` ones alone have it.
    """
    assert settings.hard_negatives is not None
    available = jnp.clip(count, 1, hardest.shape[1])[:, None]
    slots = jnp.arange(settings.hard_negatives) % available  # fewer than asked for: cyclically
    scores = jnp.take_along_axis(hardest, slots, axis=1)
    live, weighted = jnp.broadcast_to(count[:, None] > 0, scores.shape), None
    if explicit is not None:
        explicit = jnp.take_along_axis(explicit, slots, axis=1)
        weighted = (explicit & live).sum(axis=1)
    return _losses(scores, live, explicit, positive, temperature, settings), weighted


def _losses(
    negative: Float32[Array, "B columns"],
    kept: Bool[Array, "B columns"],
    explicit: Bool[Array, "B columns"] | None,
    positive: Float32[Array, " B"],
    temperature: Float32[Array, " B"] | None,
    settings: Settings,
) -> Float32[Array, " B"]:
    negative = jnp.where(kept, negative, 0)  # before arithmetic: 0 * -inf is NaN
    by_row = None if temperature is None else temperature[:, None]
    logits = (negative - positive[:, None]) / temperature_of(settings, by_row)
    weight = settings.hardness * jax.lax.stop_gradient(negative)
    logits += weight if explicit is None else jnp.where(explicit, weight, 0)
    logits = jnp.where(kept, logits, -jnp.inf)
    # The positive's logit is 0 and always there, so the log and its gradient are finite in a row
    # that has no negative. logsumexp over an all-masked row would not be.
    top = jax.lax.stop_gradient(jnp.maximum(logits.max(axis=1), 0))
    return top + jnp.log(jnp.exp(-top) + jnp.exp(logits - top[:, None]).sum(axis=1))


def chance_losses(rows: RowLosses, settings: Settings) -> Float32[Array, " B"]:
    """Losses with every negative as similar as the positive: ln(1 + k) for k negatives."""
    count = rows.count.astype(jnp.float32)
    if settings.hard_negatives is not None:
        count = jnp.minimum(count, 1) * settings.hard_negatives
    if rows.weighted is None:
        return jnp.logaddexp(0.0, jnp.log(count) + settings.hardness * rows.positive)
    weighted = rows.weighted.astype(jnp.float32)
    weight = jnp.log(weighted) + settings.hardness * rows.positive
    return jnp.logaddexp(jnp.log1p(count - weighted), weight)


def live_mean(value: Array, live: Bool[Array, " B"]) -> Float32[Array, ""]:
    """The mean over some of the rows; 0 over none."""
    return jnp.where(live, value, 0).sum() / jnp.maximum(live.sum(), 1)


def by_source(
    losses: Float32[Array, " B"],
    live: Bool[Array, " B"],
    source: Integer[Array, " B"],
    sources: int,
) -> Metrics:
    """Each source's live rows, [sources]: `source_loss`, their mean loss, and `source_rows`.

    Rows of source -1 count nowhere.
    """
    own = (source == jnp.arange(sources)[:, None]) & live  # no scatter: there are few sources
    count = own.sum(axis=1)
    fixed = jax.lax.stop_gradient(losses)
    total = jnp.where(own, fixed, 0).sum(axis=1)
    return {
        "source_loss": total / jnp.maximum(count, 1),
        "source_rows": count.astype(jnp.float32),
    }


def summarise(
    rows: RowLosses, settings: Settings, pair_mask: Bool[Array, " B"] | None = None
) -> tuple[Float32[Array, ""], Metrics]:
    """The mean loss of the rows that have a negative, and the metrics of `contrastive`.

    `pair_mask`: False for rows that are counted nowhere.
    """
    live = rows.count > 0
    counted = jnp.ones_like(live) if pair_mask is None else pair_mask
    mean = functools.partial(live_mean, live=live)

    def total(count: Int[Array, " B"]) -> Float32[Array, ""]:
        return count.astype(jnp.float32).sum()  # 65536 pairs have more than an int32 of them

    metrics = {
        "positive_similarity": live_mean(rows.positive, counted),
        "hard_negative_similarity": mean(rows.hard),
        "easy_negative_similarity": mean(rows.easy),
        "negatives_per_query": live_mean(rows.count.astype(jnp.float32), counted),
        "masked_share": total(rows.dropped) / jnp.maximum(total(rows.unlabelled), 1),
        "rows_without_negatives": (~live & counted).sum().astype(jnp.float32),
        "batch_accuracy": mean(rows.positive > rows.hard),
        "chance_loss": mean(chance_losses(rows, settings)),
    }
    for name, dropped in (
        ("duplicate_query_share", rows.duplicate_query),
        ("duplicate_target_share", rows.duplicate_target),
    ):
        if dropped is not None:
            metrics[name] = total(dropped) / jnp.maximum(total(rows.unlabelled), 1)
    return mean(rows.losses), metrics
