"""Gradients of a tiled loss: blocks of scores are computed again on the way back.

Neither the scores nor the embeddings of each row's hardest negatives are ever kept.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int

from unime_jax.losses import ring
from unime_jax.losses.blocks import Columns, Rows, Term, compare, logits_of
from unime_jax.losses.selection import Settings, temperature_of


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def with_gradient(
    settings: Settings,
    terms: tuple[Term, ...],
    column_block: int,
    log_sum: Float32[Array, " B"],
    rows: tuple[Rows, ...],
    columns: tuple[Columns, ...],
) -> Float32[Array, " B"]:
    """`log_sum`, without gradient, with that of the embeddings and of temperatures by row."""
    return log_sum


def _forward(settings, terms, column_block, log_sum, rows, columns):
    return log_sum, (log_sum, rows, columns)


def _backward(settings, terms, column_block, saved, cotangent):
    log_sum, *sides = saved

    def d_scores(term, rows, part):
        scores, labelled, chosen = compare(rows, part, term, settings)
        logits = logits_of(scores, labelled, rows, settings)
        share = jnp.where(chosen.valid, logits - log_sum[:, None], -jnp.inf)
        temperature = temperature_of(settings, rows.temperature)
        slope = jnp.exp(share) * (cotangent / temperature)[:, None]
        if rows.temperature is None:
            return slope, None
        return slope, -(slope * scores).sum(axis=1) / temperature

    parts = [_cotangents(d_scores, column_block, *part) for part in zip(terms, *sides)]
    return ring.vary(jnp.zeros(log_sum.shape)), *map(tuple, zip(*parts))


with_gradient.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def hardest_with_gradient(
    terms: tuple[Term, ...],
    column_block: int,
    hardest: Float32[Array, "B K"],
    index: Int[Array, "B K"],
    rows: tuple[Rows, ...],
    columns: tuple[Columns, ...],
) -> Float32[Array, "B K"]:
    """`hardest`, without gradient, with that of the embeddings: no [B, K, D] array is made."""
    return hardest


def _forward_hardest(terms, column_block, hardest, index, rows, columns):
    return hardest, (index, rows, columns)


def _backward_hardest(terms, column_block, saved, cotangent):
    index, *sides = saved

    def d_scores(term, rows, part):
        # Slots without a negative have no cotangent. What fills a block is column 0, too, but its
        # embeddings are zeros.
        number = part.number + term.first

        def add(slope, slot):
            place, value = slot
            return slope + jnp.where(place[:, None] == number, value[:, None], 0), None

        none = jnp.zeros((index.shape[0], number.size))
        slope, _ = jax.lax.scan(add, ring.vary(none), (index.T, cotangent.T))
        return slope, None if rows.temperature is None else jnp.zeros_like(rows.temperature)

    parts = [_cotangents(d_scores, column_block, *part) for part in zip(terms, *sides)]
    return ring.vary(jnp.zeros(cotangent.shape)), None, *map(tuple, zip(*parts))


hardest_with_gradient.defvjp(_forward_hardest, _backward_hardest)


def _cotangents(d_scores, column_block, term, rows, columns):
    """Those of a term's rows and columns, from `d_scores` of the scores of a block of columns.

    `d_scores` gives that of the rows' temperatures as well, None where they have none.
    """
    highest = jax.lax.Precision.HIGHEST
    column_block = min(column_block, columns.number.size)

    def look(d_rows, part):
        columns, d_columns = part
        slope, more_temperature = d_scores(term, rows, columns)
        d_embedding, d_temperature = d_rows
        d_embedding += jnp.einsum("bm,md->bd", slope, columns.embedding, precision=highest)
        if d_temperature is not None:
            d_temperature += more_temperature
        more = jnp.einsum("bm,bd->md", slope, rows.embedding, precision=highest)
        return (d_embedding, d_temperature), d_columns + more

    def visit(d_rows, block):
        columns, d_columns = block
        d_rows, parts = jax.lax.scan(
            look, d_rows, (ring.cut(columns, column_block), ring.cut(d_columns, column_block))
        )
        return d_rows, (columns, parts.reshape(-1, parts.shape[-1])[: columns.number.size])

    no_rows, no_columns, nothing = ring.vary(
        tuple(jnp.zeros(x.shape) for x in (rows.embedding, columns.embedding, rows.positive_score))
    )
    start = no_rows, None if rows.temperature is None else nothing
    (d_embedding, d_temperature), (_, d_columns) = ring.visit(visit, start, (columns, no_columns))
    # None: integers and masks have no gradient.
    return (
        Rows._make((d_embedding, None, None, nothing, None, d_temperature, None)),
        Columns._make((d_columns, None, None, None)),
    )
