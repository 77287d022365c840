"""Objectives: from a batch's embeddings and pairs to a loss."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unime_jax import losses
from unime_jax.batch import Batch
from unime_jax.losses import ring
from unime_jax.losses.barred import representatives
from unime_jax.training.loss_settings import Contrastive, Distillation, JudgeDistillation
from unime_jax.training.objective_terms import (
    Result,
    by_number,
    contrasted_rows,
    teacher_vectors,
    with_graded,
    with_matching,
    with_teacher,
)

Objective = Contrastive | Distillation | JudgeDistillation


def contrastive(
    embeddings: Sequence[Float[Array, "_ _ D"]],
    batch: Batch,
    config: Contrastive,
    *,
    plain: Bool[Array, ""] | None = None,
    temperature: Float[Array, ""] | None = None,
    sources: Sequence[str] = (),
) -> Result:
    """Queries against all candidates; rows are the candidates, one column a distinct target.

    Where `plain` holds, the loss is InfoNCE over all negatives that are none of the facts that rule
    one out: no term, mask and weight that `config` selects. `temperature`: a learned one, in the
    place of the config's. `sources`: the names that
    `batch.source` counts, for metrics and options by source.

    Pairs with a grade are in no contrast; their loss, and that to a teacher's vectors, are those of
    `objective_terms`.

    Raises:
      ValueError: the loss masks equal queries, and the batch does not say which they are, or it
        has a teacher, whose vectors the batch lacks; while tracing.
    """
    if config.mask_same_query and batch.query_id is None:
        raise ValueError("contrastive: mask_same_query, but the batch has no ids of queries")
    target_id = by_number(batch.target_id)
    candidate, negative = target_id != 0, batch.negative
    contrasted = None if batch.grade is None else ~jnp.isfinite(batch.grade)
    if contrasted is not None:
        candidate &= contrasted_rows(batch, contrasted, target_id.size)
    if config.mask_same_target:
        representative = representatives(target_id)
        candidate = jnp.zeros_like(candidate).at[representative].max(candidate)
        candidate &= representative == jnp.arange(representative.size)
        negative = jnp.where(negative < 0, -1, representative[negative])
    own_id = target_id[batch.positive]
    join = by_number if config.column_block is None else ring.beside
    table, teacher = join(embeddings), None
    if config.uses_teacher:
        teacher = join(teacher_vectors(batch, "contrastive"))
    if config.column_block is None:
        positive = batch.positive
        sides = [(x[batch.query], x[positive]) for x in _given(table, teacher)]
    else:
        number = ring.beside(_numbers(embeddings))
        place = jnp.zeros_like(number).at[number].set(jnp.arange(number.size))
        positive = place[batch.positive]
        rows = place[batch.query], positive
        sides = [
            tuple(ring.blockwise(ring.pick, of, x) for of in rows) for x in _given(table, teacher)
        ]
        negative = jnp.where(negative < 0, -1, place[negative])
        target_id, candidate = target_id[number], candidate[number]

    def contrast(config: Contrastive) -> Result:
        return losses.contrastive(
            sides[0][0],
            table,
            positive,
            temperature=(
                _temperature(batch, config, sources) if temperature is None else temperature
            ),
            hard_negatives=config.hard_negatives,
            false_negative_margin=config.false_negative_margin,
            hardness=config.hardness,
            hardness_on=config.hardness_on,
            symmetric=config.symmetric,
            query_query=config.query_query,
            query_query_margin=config.query_query_margin,
            document_document=config.document_document,
            document_document_margin=config.document_document_margin,
            duplicate_queries=config.duplicate_queries,
            duplicate_targets=config.duplicate_targets,
            trust_explicit=config.trust_explicit,
            pool=config.pool,
            spread_out_weight=config.spread_out_weight,
            target_id=target_id if config.mask_same_target else None,
            query_id=batch.query_id if config.mask_same_query else None,
            closed=_closed(batch, config, sources),
            pair_mask=contrasted,
            explicit_negatives=negative if negative.shape[1] else None,
            candidate_mask=candidate,
            column_block=config.column_block,
            source=batch.source,
            sources=len(sources),
        )

    result = _begun_plain(contrast, config, plain)
    if contrasted is not None:
        result = with_graded(result, *sides[0], batch, config, sources)
    if teacher is not None and config.teacher_weight:
        result = with_teacher(
            result, sides[0], sides[1], own_id, batch, config, plain=plain, sources=sources
        )
    if teacher is not None and config.teacher_matching_weight:
        live = join([group.embedded for group in batch.groups])
        result = with_matching(result, table, teacher, live, config, plain=plain)
    return result


def _given(table: Array, teacher: Array | None) -> list[Array]:
    return [table] if teacher is None else [table, teacher]


def _begun_plain(
    contrast: Callable[[Contrastive], Result], config: Contrastive, plain: Bool[Array, ""] | None
) -> Result:
    """The config's contrast, or InfoNCE where `plain` holds."""
    if plain is None:
        return contrast(config)
    infonce = dataclasses.replace(
        config,
        hard_negatives=None,
        false_negative_margin=None,
        hardness=0.0,
        query_query=False,
        query_query_margin=None,
        document_document=False,
        document_document_margin=None,
        duplicate_queries=None,
        duplicate_targets=None,
        spread_out_weight=0.0,
    )

    def first() -> Result:
        loss, metrics = contrast(infonce)
        return loss, {name: jnp.zeros(()) for name in _optional_metrics(config)} | metrics

    return jax.lax.cond(plain, first, lambda: contrast(config))


def _optional_metrics(config: Contrastive) -> list[str]:
    """Metrics of the options that are on, and off in plain InfoNCE."""
    options = {
        "duplicate_query_share": config.duplicate_queries is not None,
        "duplicate_target_share": config.duplicate_targets is not None,
        "spread_out": bool(config.spread_out_weight),
    }
    return [name for name, on in options.items() if on]


def _temperature(
    batch: Batch, config: Contrastive, sources: Sequence[str]
) -> float | Float[Array, " B"]:
    """Of all rows, or by row if sources have their own."""
    if not config.source_temperatures:
        return config.temperature
    temperature = jnp.full(batch.source.shape, config.temperature, jnp.float32)
    for name, value in config.source_temperatures:
        if name in sources:
            temperature = jnp.where(batch.source == sources.index(name), value, temperature)
    return temperature


def _closed(batch: Batch, config: Contrastive, sources: Sequence[str]) -> Bool[Array, " B"] | None:
    """Rows of closed sources; None if there are none."""
    numbers = [sources.index(name) for name in config.closed_sources if name in sources]
    if not config.closed_sources:
        return None
    return (batch.source[:, None] == jnp.array(numbers, jnp.int32)).any(axis=1)


def _numbers(parts: Sequence[Array]) -> list[Int[Array, "_ _"]]:
    """The row numbers of all groups."""
    sizes = [part.shape[0] * part.shape[1] for part in parts]
    return [
        sum(sizes[:i]) + jnp.arange(size).reshape(part.shape[:2])
        for i, (size, part) in enumerate(zip(sizes, parts, strict=True))
    ]


def judge_distillation(
    embeddings: Sequence[Float[Array, "_ _ D"]],
    batch: Batch,
    config: JudgeDistillation,
    *,
    plain: Bool[Array, ""] | None = None,
    temperature: Float[Array, ""] | None = None,
    sources: Sequence[str] = (),
) -> Result:
    """A judge's scores of each query's own candidates, and the weighted contrastive loss.

    Where `plain` holds, the loss is InfoNCE alone. `temperature`: a learned one, of the contrastive
    loss; that of the judge's divergence is the config's. `sources` as in `contrastive`. Metrics are
    those of both losses, `judge_loss` and, if there is one, `contrastive_loss`; `chance_loss` and
    `source_loss` are of their sum.

    Raises:
      ValueError: the batch has no scores; while tracing.
    """
    if batch.scores is None:
        raise ValueError("judge_distillation: the batch has no scores of its candidates")
    table = by_number(embeddings).astype(jnp.float32)
    own = jnp.concatenate([batch.positive[:, None], jnp.maximum(batch.negative, 0)], axis=1)
    similarity = jnp.einsum(
        "bd,bmd->bm", table[batch.query], table[own], precision=jax.lax.Precision.HIGHEST
    )
    loss, metrics = losses.judge_distillation(
        similarity,
        batch.scores,
        form=config.form,
        temperature=config.temperature,
        judge_temperature=config.judge_temperature,
        smallest_gap=config.smallest_gap,
        mask=jnp.isfinite(batch.scores),
        source=batch.source,
        sources=len(sources),
    )
    metrics = metrics | {"judge_loss": loss}
    if not config.contrastive_weight and plain is None:
        return loss, metrics
    contrast, others = contrastive(
        embeddings,
        batch,
        config.contrastive,
        plain=plain,
        temperature=temperature,
        sources=sources,
    )
    others = others | {"contrastive_loss": contrast}

    def combined(judged: Array, contrasted: Array) -> Array:
        both = judged + config.contrastive_weight * contrasted
        return both if plain is None else jnp.where(plain, contrasted, both)

    for name in ("chance_loss", *(("source_loss",) if sources else ())):
        others[name] = combined(metrics[name], others[name])
    if sources:  # the sources' means are of the queries that have either loss
        others["source_rows"] = jnp.maximum(metrics["source_rows"], others["source_rows"])
    return combined(loss, contrast), metrics | others


def mean_cosine(embeddings: Sequence[Float[Array, "_ _ D"]], batch: Batch) -> Float[Array, ""]:
    """Mean cosine of two different rows of the batch: 1 for a collapsed model.

    It follows from the length of the sum of all N unit vectors, (|sum|^2 - N) / (N (N - 1)), so no
    two of them need meet on a device. Without gradient; 0 for fewer than two rows.
    """
    count, total = jnp.zeros(()), jnp.zeros(())
    for part, group in zip(embeddings, batch.groups, strict=True):
        fixed = jax.lax.stop_gradient(part).astype(jnp.float32)
        total += jnp.where(group.embedded[..., None], fixed, 0).sum(axis=(0, 1))
        count += group.embedded.sum()
    mean = total / jnp.maximum(count, 1)
    cosine = (jnp.sum(mean * mean) * count - 1) / jnp.maximum(count - 1, 1)
    return jnp.where(count > 1, cosine, 0)
