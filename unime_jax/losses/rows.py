"""Per-row InfoNCE terms and their reduction over the batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Integer

from unime_jax.losses.similarity import cosines

Metrics = dict[str, Float32[Array, "..."]]  # scalars, and [sources] by source


@dataclasses.dataclass(frozen=True)
class Settings:
    """Arguments of `contrastive`."""

    temperature: float
    hard_negatives: int | None
    false_negative_margin: float | None
    hardness: float
    symmetric: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowLosses:
    """Per-row results.

    Only `losses` carries a gradient; other fields are undefined for rows without negatives.
    `positive`, `hard`, `easy`: similarities of the positive, the most and the least similar
    negative. `count`: negatives kept. `unlabelled`: negatives that no label names, before the
    margin; `dropped`: how many of those the margin dropped.
    """

    losses: Float32[Array, " B"]
    positive: Float32[Array, " B"]
    hard: Float32[Array, " B"]
    easy: Float32[Array, " B"]
    count: Int[Array, " B"]
    unlabelled: Int[Array, " B"]
    dropped: Int[Array, " B"]


def dense_rows(
    queries: Float32[Array, "B D"],
    candidates: Float32[Array, "M D"],
    positive: Integer[Array, " B"],
    target_id: Integer[Array, " M"],
    mask: Bool[Array, " M"],
    labelled: Integer[Array, "B H"],
    settings: Settings,
) -> tuple[RowLosses, RowLosses | None]:
    """Results of queries against candidates and, if symmetric, of positives against queries.

    `labelled` are explicit negatives by column, -1 for none; the other arguments as in
    `contrastive`.
    """
    positive_id = target_id[positive]
    available = target_id != positive_id[:, None]  # also leaves out the positive itself
    available &= mask
    is_labelled = (labelled[:, :, None] == jnp.arange(mask.size)).any(axis=1)
    forth = _dense(cosines(queries, candidates), positive, available, is_labelled, settings)
    if not settings.symmetric:
        return forth, None
    # A second product, not a transpose: rows stay rows, so top_k never crosses devices.
    scores = cosines(candidates[positive], queries)
    available = positive_id != positive_id[:, None]
    own = jnp.arange(positive.size)
    return forth, _dense(scores, own, available, jnp.zeros_like(available), settings)


def _dense(
    scores: Float32[Array, "B M"],
    positive: Integer[Array, " B"],
    available: Bool[Array, "B M"],
    labelled: Bool[Array, "B M"],
    settings: Settings,
) -> RowLosses:
    """Results of every row; its negatives are `available` less those that the margin drops."""
    margin = settings.false_negative_margin
    positive_score = jnp.take_along_axis(scores, positive[:, None], axis=1)
    fixed, fixed_positive = jax.lax.stop_gradient((scores, positive_score))
    unlabelled = available & ~labelled
    dropped = jnp.zeros_like(available) if margin is None else fixed > fixed_positive + margin
    dropped &= unlabelled
    valid = available & ~dropped
    count = valid.sum(axis=1)
    if settings.hard_negatives is None:
        losses = _losses(scores, valid, positive_score[:, 0], settings)
    else:
        width = min(settings.hard_negatives, scores.shape[1])
        hardest, _ = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), width)
        losses = hardest_losses(hardest, positive_score[:, 0], count, settings)
    return RowLosses(
        losses=losses,
        positive=fixed_positive[:, 0],
        hard=jnp.where(valid, fixed, -jnp.inf).max(axis=1),
        easy=jnp.where(valid, fixed, jnp.inf).min(axis=1),
        count=count,
        unlabelled=unlabelled.sum(axis=1),
        dropped=dropped.sum(axis=1),
    )


def hardest_losses(
    hardest: Float32[Array, "B K"],
    positive: Float32[Array, " B"],
    count: Int[Array, " B"],
    settings: Settings,
) -> Float32[Array, " B"]:
    """Losses against the hardest negatives in descending order; the first `count` are real."""
    assert settings.hard_negatives is not None
    available = jnp.clip(count, 1, hardest.shape[1])[:, None]
    slots = jnp.arange(settings.hard_negatives) % available  # fewer than asked for: cyclically
    scores = jnp.take_along_axis(hardest, slots, axis=1)
    return _losses(scores, count[:, None] > 0, positive, settings)


def _losses(
    negative: Float32[Array, "B columns"],
    kept: Bool[Array, "B #columns"],
    positive: Float32[Array, " B"],
    settings: Settings,
) -> Float32[Array, " B"]:
    negative = jnp.where(kept, negative, 0)  # before arithmetic: 0 * -inf is NaN
    logits = (negative - positive[:, None]) / settings.temperature
    logits += settings.hardness * jax.lax.stop_gradient(negative)
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
    return jnp.logaddexp(0.0, jnp.log(count) + settings.hardness * rows.positive)


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


def summarise(rows: RowLosses, settings: Settings) -> tuple[Float32[Array, ""], Metrics]:
    """The mean loss of the rows that have a negative, and the metrics of `contrastive`."""
    live = rows.count > 0
    mean = functools.partial(live_mean, live=live)

    def total(count: Int[Array, " B"]) -> Float32[Array, ""]:
        return count.astype(jnp.float32).sum()  # 65536 pairs have more than an int32 of them

    metrics = {
        "positive_similarity": rows.positive.mean(),
        "hard_negative_similarity": mean(rows.hard),
        "easy_negative_similarity": mean(rows.easy),
        "negatives_per_query": rows.count.astype(jnp.float32).mean(),
        "masked_share": total(rows.dropped) / jnp.maximum(total(rows.unlabelled), 1),
        "rows_without_negatives": (~live).sum().astype(jnp.float32),
        "batch_accuracy": mean(rows.positive > rows.hard),
        "chance_loss": mean(chance_losses(rows, settings)),
    }
    return mean(rows.losses), metrics
