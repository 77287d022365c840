"""Objective of relational distillation: the texts of a batch, as a teacher finds them."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from unime_jax import losses
from unime_jax.batch import Batch, Inputs
from unime_jax.losses.barred import representatives
from unime_jax.training.loss_settings import Distillation
from unime_jax.training.objective_terms import Result, by_number, teacher_vectors


def text_id(batch: Batch) -> UInt32[Array, " G"]:
    """32 bits of every row's tokens, the same in any bucket and process."""

    def of_group(group: Inputs) -> UInt32[Array, "_ _"]:
        # A polynomial modulo 2^32; tokens after the end are 0, so the length tells "a" from "a0".
        tokens = group.tokens.astype(jnp.uint32)
        size = tokens.shape[-1]
        powers = np.cumprod(np.full(size, 0x9E3779B1, np.uint32), dtype=np.uint32)
        if group.segment is None or group.segment_end is None:
            value = (tokens * powers).sum(axis=-1, dtype=jnp.uint32)
            return value + group.length.astype(jnp.uint32)
        # Of each of a row's texts, by powers that begin where it does.
        ends = group.segment_end
        begin = jnp.pad(ends[..., :-1] + 1, ((0, 0), (0, 0), (1, 0)))
        own = group.segment[..., None] == jnp.arange(1, ends.shape[-1] + 1)
        place = jnp.arange(size)[:, None] - begin[..., None, :]
        terms = tokens[..., None] * jnp.asarray(powers)[jnp.clip(place, 0, size - 1)]
        value = jnp.where(own, terms, 0).sum(axis=-2, dtype=jnp.uint32)
        return (value + (ends + 1 - begin).astype(jnp.uint32)).reshape(len(ends), -1)

    return by_number([of_group(group) for group in batch.groups])


def distillation(
    embeddings: Sequence[Float[Array, "_ _ D"]],
    batch: Batch,
    config: Distillation,
    *,
    sources: Sequence[str] = (),
) -> Result:
    """Relational distillation of the batch's texts, from the teacher embeddings of its rows.

    With "all" a text counts once, also if several processes have read it; with "queries" and
    "pairs" one that several pairs have in common counts several times. `sources` as in
    `contrastive`.

    Raises:
      ValueError: the rows have no teacher; while tracing.
    """
    student, teacher = by_number(embeddings), by_number(teacher_vectors(batch, "distillation"))
    live = by_number([group.embedded for group in batch.groups])
    every = jnp.arange(live.size)
    if config.texts == "all":
        live &= representatives(text_id(batch)) == every
    rows, columns = {
        "all": (every, every),
        "queries": (batch.query, batch.query),
        "pairs": (batch.query, batch.positive),
    }[config.texts]
    return losses.relational_distillation(
        student[rows],
        teacher[rows],
        student[columns],
        teacher[columns],
        temperature=config.temperature,
        teacher_temperature=config.teacher_temperature,
        direction=config.direction,
        mask_diagonal=config.mask_diagonal,
        reduction=config.reduction,
        row_mask=live[rows],
        column_mask=live[columns],
        source=_source_of_rows(batch, live.size)[rows],
        sources=len(sources),
    )


def _source_of_rows(batch: Batch, size: int) -> Int[Array, " G"]:
    """Source of each row's pairs, the largest if there are several; -1: the row is in no pair."""
    pairs = jnp.concatenate([batch.query[:, None], batch.positive[:, None], batch.negative], axis=1)
    source = jnp.broadcast_to(batch.source[:, None], pairs.shape)
    place = jnp.where(pairs < 0, size, pairs)  # no negative: out of the array, so dropped
    return jnp.full(size, -1, batch.source.dtype).at[place].max(source, mode="drop")
