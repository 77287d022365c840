"""Gradients of a tiled loss: blocks of scores are computed again on the way back.

Neither the scores nor the embeddings of positives and of each row's hardest negatives are kept.
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
) -> tuple[Float32[Array, " B"], Float32[Array, " B"]]:
    """`log_sum` and the positives' scores, which have no gradient, with that of the embeddings.

    And with that of temperatures by row.
    """
    return log_sum, rows[0].positive_score


def _forward(settings, terms, column_block, log_sum, rows, columns):
    return (log_sum, rows[0].positive_score), (log_sum, rows, columns)


def _backward(settings, terms, column_block, saved, cotangents):
    log_sum, *sides = saved

    def d_scores(term, rows, part, log_sum, d_log_sum, d_positive):
        scores, labelled, chosen = compare(rows, part, term, settings)
        logits = logits_of(scores, labelled, rows, settings)
        share = jnp.where(chosen.valid, logits - log_sum[:, None], -jnp.inf)
        temperature = temperature_of(settings, rows.temperature)
        slope = jnp.exp(share) * (d_log_sum / temperature)[:, None]
        d_temperature = None
        if rows.temperature is not None:
            d_temperature = -(slope * scores).sum(axis=1) / temperature
        return _with_positive(slope, rows, part, d_positive), d_temperature

    by_row = log_sum, *cotangents
    parts = [_cotangents(d_scores, column_block, by_row, *part) for part in zip(terms, *sides)]
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
) -> tuple[Float32[Array, "B K"], Float32[Array, " B"]]:
    """`hardest` and the positives' scores, which have no gradient, with that of the embeddings.

    No [B, K, D] array is made.
    """
    return hardest, rows[0].positive_score


def _forward_hardest(terms, column_block, hardest, index, rows, columns):
    return (hardest, rows[0].positive_score), (index, rows, columns)


def _backward_hardest(terms, column_block, saved, cotangents):
    index, *sides = saved

    def d_scores(term, rows, part, index, d_hardest, d_positive):
        # Slots without a negative have no cotangent. What fills a block is column 0, too, but its
        # embeddings are zeros.
        number = part.number + term.first

        def add(slope, slot):
            place, value = slot
            return slope + jnp.where(place[:, None] == number, value[:, None], 0), None

        none = ring.vary(jnp.zeros((index.shape[0], number.size)))
        slope, _ = jax.lax.scan(add, none, (index.T, d_hardest.T), unroll=min(8, index.shape[1]))
        d_temperature = None if rows.temperature is None else jnp.zeros_like(rows.temperature)
        return _with_positive(slope, rows, part, d_positive), d_temperature

    by_row = index, *cotangents
    parts = [_cotangents(d_scores, column_block, by_row, *part) for part in zip(terms, *sides)]
    return ring.vary(jnp.zeros(index.shape)), None, *map(tuple, zip(*parts))


hardest_with_gradient.defvjp(_forward_hardest, _backward_hardest)


def _with_positive(slope, rows, columns, d_positive):
    if rows.positive is None:
        return slope
    return slope + jnp.where(rows.positive[:, None] == columns.number, d_positive[:, None], 0)


def _cotangents(d_scores, column_block, by_row, term, rows, columns):
    """Those of a term's rows and columns, from `d_scores` of a block of scores.

    `d_scores` is given the block's rows of the arrays `by_row`, too. It gives that of the rows'
    temperatures as well, None where they have none.
    """
    size, width = rows.embedding.shape
    row_block, column_block = min(column_block, size), min(column_block, columns.number.size)
    # Rows that fill the last block are copies, which divide by no temperature of zero; the
    # cotangents in `by_row` are filled with zeros.
    row_blocks, by_row = ring.cut(rows, row_block, "edge"), ring.cut(by_row, row_block)
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def visit(d_rows, part, d_columns):
        def look(both, block):
            d_rows, d_columns = both
            place, rows, by_row = block
            slope, d_temperature = d_scores(term, rows, part, *by_row)
            more = product("bm,md->bd", slope, part.embedding), d_temperature
            d_columns += product("bm,bd->md", slope, rows.embedding)
            return (_add(d_rows, place, more), d_columns), None

        blocks = jnp.arange(len(row_blocks.embedding)), row_blocks, by_row
        return jax.lax.scan(look, (d_rows, d_columns), blocks)[0]

    no_rows, no_columns, nothing = ring.vary(
        (
            jnp.zeros(row_blocks.embedding.shape),
            jnp.zeros((column_block, width)),
            jnp.zeros(row_blocks.positive_score.shape),
        )
    )
    start = no_rows, None if rows.temperature is None else nothing
    d_rows, d_columns = ring.visit(visit, start, columns, column_block, no_columns)
    d_embedding, d_temperature = ring.join(d_rows, size)
    no_score = ring.join(nothing, size)
    # None: integers and masks have no gradient.
    return (
        Rows._make((d_embedding, None, None, None, no_score, None, d_temperature, None)),
        Columns._make((ring.join(d_columns, columns.number.size), None, None, None)),
    )


def _add(total, place, more):
    """`more` added at a place of each array, in place."""

    def add(total, more):
        own = jax.lax.dynamic_index_in_dim(total, place, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(total, own + more, place, 0)

    return jax.tree.map(add, total, more)
