"""InfoNCE row by row without a [B, M] array, in memory or on the wire.

Candidates pass round the ring of devices; a device has the scores of one block of columns at a
time, and keeps running sums of them, or the hardest. The backward pass computes the blocks again.
Here B and M are a device's own rows and its share of the columns.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Integer

from unime_jax.losses import ring
from unime_jax.losses.rows import RowLosses, Settings, hardest_losses


class _Rows(NamedTuple):
    embedding: Float32[Array, "B D"]
    target_id: Integer[Array, " B"]
    labelled: Integer[Array, "B H"]  # columns by number, -1: none
    positive_score: Float32[Array, " B"]


class _Columns(NamedTuple):
    embedding: Float32[Array, "M D"]
    target_id: Integer[Array, " M"]
    mask: Bool[Array, " M"]
    number: Int[Array, " M"]


def tiled_rows(
    queries: Float32[Array, "B D"],
    candidates: Float32[Array, "M D"],
    positive: Integer[Array, " B"],
    target_id: Integer[Array, " M"],
    mask: Bool[Array, " M"],
    labelled: Integer[Array, "B H"],
    settings: Settings,
    column_block: int,
) -> tuple[RowLosses, RowLosses | None]:
    """Rows of the queries, and of their positives if the loss is symmetric: `rows.dense_rows`."""
    positive_id = target_id[positive]
    numbers = jnp.arange(candidates.shape[0])
    columns = _Columns(candidates, target_id, mask, numbers)
    pairs = jnp.arange(queries.shape[0])
    back_columns = _Columns(queries, positive_id, jnp.ones(pairs.shape, bool), pairs)

    def block(positive, positive_id, labelled, columns, back_columns):
        queries, own = back_columns.embedding, ring.pick(positive, columns.embedding)
        forth = _direction(queries, own, positive_id, labelled, columns, settings, column_block)
        if not settings.symmetric:
            return forth, None
        none = labelled[:, :0]
        return forth, _direction(
            own, queries, positive_id, none, back_columns, settings, column_block
        )

    return ring.blockwise(block, positive, positive_id, labelled, columns, back_columns)


def _direction(
    embedding: Float32[Array, "B D"],
    positive: Float32[Array, "B D"],
    target_id: Integer[Array, " B"],
    labelled: Integer[Array, "B H"],
    columns: _Columns,
    settings: Settings,
    column_block: int,
) -> RowLosses:
    highest = jax.lax.Precision.HIGHEST
    positive_score = jnp.einsum("bd,bd->b", embedding, positive, precision=highest)
    rows = _Rows(embedding, target_id, labelled, positive_score)
    column_block = min(column_block, columns.number.size)
    fixed_rows, fixed_columns = jax.lax.stop_gradient((rows, columns))
    survey = _survey(fixed_rows, fixed_columns, settings, column_block)
    live = survey.count > 0
    if settings.hard_negatives is None:
        log_sum = _with_gradient(settings, column_block, survey.log_sum, rows, columns)
        gap = jnp.where(live, log_sum - positive_score / settings.temperature, 0)
        losses = jnp.where(live, jax.nn.softplus(gap), 0)
    else:
        chosen = ring.pick(survey.index.reshape(-1), columns.embedding)
        chosen = chosen.reshape(*survey.index.shape, -1)
        hardest = jnp.einsum("bd,bkd->bk", embedding, chosen, precision=highest)
        losses = hardest_losses(hardest, positive_score, survey.count, settings)
    return RowLosses(
        losses=losses,
        positive=fixed_rows.positive_score,
        hard=survey.hard,
        easy=survey.easy,
        count=survey.count,
        unlabelled=survey.unlabelled,
        dropped=survey.dropped,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Survey:
    """Running statistics of each row over the columns visited so far."""

    count: Int[Array, " B"]
    unlabelled: Int[Array, " B"]
    dropped: Int[Array, " B"]
    hard: Float32[Array, " B"]
    easy: Float32[Array, " B"]
    log_sum: Float32[Array, " B"]  # log of the sum of exp of the logits, without the positive's
    hardest: Float32[Array, "B K"]
    index: Int[Array, "B K"]  # numbers of the hardest


def _survey(rows: _Rows, columns: _Columns, settings: Settings, column_block: int) -> _Survey:
    size = rows.target_id.size
    width = settings.hard_negatives or 0
    lowest = jnp.full(size, -jnp.inf)
    none = jnp.zeros(size, jnp.int32)
    start = _Survey(
        none, none, none, lowest, -lowest, lowest,
        jnp.full((size, width), -jnp.inf), jnp.zeros((size, width), jnp.int32),
    )  # fmt: skip

    def look(seen: _Survey, part: _Columns) -> tuple[_Survey, None]:
        scores, valid, unlabelled, dropped = _compare(rows, part, settings)
        negative = jnp.where(valid, scores, -jnp.inf)
        if width:
            number = jnp.broadcast_to(part.number, scores.shape)
            both = jnp.concatenate([seen.hardest, negative], axis=1)
            hardest, place = jax.lax.top_k(both, width)
            numbers = jnp.concatenate([seen.index, number], axis=1)
            index = jnp.take_along_axis(numbers, place, axis=1)
            log_sum = seen.log_sum
        else:
            hardest, index = seen.hardest, seen.index
            logits = jnp.where(valid, _logits(scores, settings), -jnp.inf)
            more = jax.nn.logsumexp(logits, axis=1)
            log_sum = jnp.logaddexp(seen.log_sum, more)
        return _Survey(
            count=seen.count + valid.sum(axis=1),
            unlabelled=seen.unlabelled + unlabelled.sum(axis=1),
            dropped=seen.dropped + dropped.sum(axis=1),
            hard=jnp.maximum(seen.hard, negative.max(axis=1)),
            easy=jnp.minimum(seen.easy, jnp.where(valid, scores, jnp.inf).min(axis=1)),
            log_sum=log_sum,
            hardest=hardest,
            index=index,
        ), None

    def visit(seen: _Survey, columns: _Columns) -> tuple[_Survey, _Columns]:
        return jax.lax.scan(look, seen, _cut(columns, column_block))[0], columns

    return ring.visit(visit, ring.vary(start), columns)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_gradient(
    settings: Settings,
    column_block: int,
    log_sum: Float32[Array, " B"],
    rows: _Rows,
    columns: _Columns,
) -> Float32[Array, " B"]:
    """`log_sum`, which came without gradient, with that of rows' and columns' embeddings."""
    return log_sum


def _forward(settings, column_block, log_sum, rows, columns):
    return log_sum, (log_sum, rows, columns)


def _backward(settings, column_block, saved, cotangent):
    log_sum, rows, columns = saved
    highest = jax.lax.Precision.HIGHEST

    def look(d_rows, part):
        columns, d_columns = part
        scores, valid, _, _ = _compare(rows, columns, settings)
        share = jnp.where(valid, _logits(scores, settings) - log_sum[:, None], -jnp.inf)
        d_scores = jnp.exp(share) * (cotangent / settings.temperature)[:, None]
        d_rows += jnp.einsum("bm,md->bd", d_scores, columns.embedding, precision=highest)
        more = jnp.einsum("bm,bd->md", d_scores, rows.embedding, precision=highest)
        return d_rows, d_columns + more

    def visit(d_rows, block):
        columns, d_columns = block
        d_rows, parts = jax.lax.scan(
            look, d_rows, (_cut(columns, column_block), _cut(d_columns, column_block))
        )
        return d_rows, (columns, parts.reshape(-1, parts.shape[-1])[: columns.number.size])

    no_rows, no_columns, nothing = ring.vary(
        tuple(jnp.zeros(x.shape) for x in (rows.embedding, columns.embedding, log_sum))
    )
    d_rows, (_, d_columns) = ring.visit(visit, no_rows, (columns, no_columns))
    # None: integers and masks have no gradient.
    return (
        nothing,
        _Rows._make((d_rows, None, None, nothing)),
        _Columns._make((d_columns, None, None, None)),
    )


_with_gradient.defvjp(_forward, _backward)


def _compare(
    rows: _Rows, columns: _Columns, settings: Settings
) -> tuple[
    Float[Array, "B block"], Bool[Array, "B block"], Bool[Array, "B block"], Bool[Array, "B block"]
]:
    """Scores; which columns are negatives, are negatives by no label, and were dropped of those."""
    scores = jnp.einsum(
        "bd,md->bm", rows.embedding, columns.embedding, precision=jax.lax.Precision.HIGHEST
    )
    available = (columns.target_id != rows.target_id[:, None]) & columns.mask
    labelled = (rows.labelled[:, :, None] == columns.number).any(axis=1)
    unlabelled = available & ~labelled
    dropped = jnp.zeros_like(unlabelled)
    if settings.false_negative_margin is not None:
        bound = rows.positive_score + settings.false_negative_margin
        dropped = unlabelled & (scores > bound[:, None])
    return scores, available & ~dropped, unlabelled, dropped


def _logits(scores: Float[Array, "B block"], settings: Settings) -> Float[Array, "B block"]:
    return scores / settings.temperature + settings.hardness * scores


def _cut(block: Any, column_block: int) -> Any:
    """[M, ...] as [blocks, column_block, ...]; zeros, masked out, fill the last block."""

    def cut(x: Array) -> Array:
        blocks = math.ceil(x.shape[0] / column_block)
        fill = [(0, blocks * column_block - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, fill).reshape(blocks, column_block, *x.shape[1:])

    return jax.tree.map(cut, block)
