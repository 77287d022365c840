"""Objective of relational distillation: the texts of a batch, as a teacher finds them."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from unime_jax import losses
from unime_jax.batch import Batch
from unime_jax.losses.barred import representatives
from unime_jax.training.objective_terms import Result, by_number, teacher_vectors
from unime_jax.training.settings import Distillation


def text_id(batch: Batch) -> UInt32[Array, " G"]:
    """32 bits of every row's tokens, the same in any bucket and process."""

    def of_group(tokens: Int[Array, "C R T"], length: Int[Array, "C R"]) -> UInt32[Array, "C R"]:
        # A polynomial modulo 2^32; tokens after the end are 0, so the length tells "a" from "a0".
        powers = np.cumprod(np.full(tokens.shape[-1], 0x9E3779B1, np.uint32), dtype=np.uint32)
        value = (tokens.astype(jnp.uint32) * powers).sum(axis=-1, dtype=jnp.uint32)
        return value + length.astype(jnp.uint32)

    return by_number([of_group(group.tokens, group.length) for group in batch.groups])


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
    live = by_number([group.live for group in batch.groups])
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
