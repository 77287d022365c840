"""InfoNCE row by row without a [B, M] array, in memory or on the wire.

Candidates pass round the ring of devices; a device has the scores of one block of columns at a
time, and keeps running sums of them, or the hardest. The backward pass computes the blocks again.
Here B and M are a device's own rows and its share of the columns.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Integer, UInt8

from unime_jax.losses import ring
from unime_jax.losses.barred import Barred
from unime_jax.losses.rows import RowLosses, hardest_losses
from unime_jax.losses.selection import Negatives, Settings, select, temperature_of


class _Rows(NamedTuple):
    embedding: Float32[Array, "B D"]
    target_id: Integer[Array, " B"]
    labelled: Integer[Array, "B H"]  # columns by number, -1: none
    positive_score: Float32[Array, " B"]
    closed: Bool[Array, " B"] | None
    temperature: Float32[Array, " B"] | None  # None: the settings have it
    barred: UInt8[Array, "B columns"] | None  # of all devices' columns


class _Columns(NamedTuple):
    embedding: Float32[Array, "M D"]
    target_id: Integer[Array, " M"]
    mask: Bool[Array, " M"]
    number: Int[Array, " M"]


@dataclasses.dataclass(frozen=True)
class _Term:
    """What a loss fixes of a term; columns of all terms count on from `first`."""

    margin: float | None
    first: int


def tiled_rows(
    queries: Float32[Array, "B D"],
    candidates: Float32[Array, "M D"],
    positive: Integer[Array, " B"],
    target_id: Integer[Array, " M"],
    mask: Bool[Array, " M"],
    labelled: Integer[Array, "B H"],
    closed: Bool[Array, " B"] | None,
    temperature: Float32[Array, " B"] | None,
    barred: Barred,
    settings: Settings,
    column_block: int,
) -> tuple[RowLosses, RowLosses | None]:
    """Rows of the queries, and of their positives if the loss is symmetric: `rows.dense_rows`."""
    positive_id = target_id[positive]
    numbers = jnp.arange(candidates.shape[0])
    columns = _Columns(candidates, target_id, mask, numbers)
    pairs = jnp.arange(queries.shape[0])
    back_columns = _Columns(queries, positive_id, jnp.ones(pairs.shape, bool), pairs)
    count, pair_count = numbers.size, pairs.size
    terms = [_Term(settings.false_negative_margin, 0)]
    if settings.query_query:
        terms.append(_Term(settings.query_query_margin, count))
    if settings.document_document:
        first = count + pair_count * settings.query_query
        terms.append(_Term(settings.document_document_margin, first))

    def block(positive, positive_id, labelled, closed, temperature, barred, columns, back_columns):
        queries, own = back_columns.embedding, ring.pick(positive, columns.embedding)
        highest, none = jax.lax.Precision.HIGHEST, labelled[:, :0]
        score = jnp.einsum("bd,bd->b", queries, own, precision=highest)
        row = _Rows(queries, positive_id, labelled, score, closed, temperature, barred.columns)
        rows, all_columns = [row], [columns]
        if settings.query_query:
            rows.append(row._replace(labelled=none, barred=barred.pairs))
            all_columns.append(back_columns)
        if settings.document_document:
            rows.append(row._replace(embedding=own, labelled=none))
            all_columns.append(columns)
        forth = _direction(rows, all_columns, tuple(terms), settings, column_block)
        if not settings.symmetric:
            return forth, None
        score = jnp.einsum("bd,bd->b", own, queries, precision=highest)
        row = row._replace(embedding=own, labelled=none, positive_score=score, barred=barred.pairs)
        return forth, _direction([row], [back_columns], (terms[0],), settings, column_block)

    return ring.blockwise(
        block, positive, positive_id, labelled, closed, temperature, barred, columns, back_columns
    )


def _direction(
    rows: Sequence[_Rows],
    columns: Sequence[_Columns],
    terms: tuple[_Term, ...],
    settings: Settings,
    column_block: int,
) -> RowLosses:
    """Losses over the columns of all terms, and the rows as each of them is compared."""
    row = rows[0]
    fixed_rows, fixed_columns = jax.lax.stop_gradient((tuple(rows), tuple(columns)))
    survey = _start(row, settings)
    for parts in zip(fixed_rows, fixed_columns, terms, strict=True):
        survey = _survey(survey, *parts, settings, column_block)
    live = survey.count > 0
    temperature = temperature_of(settings, row.temperature)
    weighted = survey.weighted
    if settings.hard_negatives is None:
        log_sum = _with_gradient(
            settings, terms, column_block, survey.log_sum, tuple(rows), tuple(columns)
        )
        gap = jnp.where(live, log_sum - row.positive_score / temperature, 0)
        losses = jnp.where(live, jax.nn.softplus(gap), 0)
    else:
        hardest = _scores_of(survey.index, rows, columns, terms)
        explicit = None
        if settings.weighs_explicit:
            explicit = (survey.index[:, :, None] == row.labelled[:, None, :]).any(axis=2)
        losses, weighted = hardest_losses(
            hardest, explicit, row.positive_score, row.temperature, survey.count, settings
        )
    return RowLosses(
        losses=losses,
        positive=fixed_rows[0].positive_score,
        hard=survey.hard,
        easy=survey.easy,
        count=survey.count,
        weighted=weighted,
        unlabelled=survey.unlabelled,
        dropped=survey.dropped,
        duplicate_query=survey.duplicate_query,
        duplicate_target=survey.duplicate_target,
    )


def _scores_of(
    index: Int[Array, "B K"],
    rows: Sequence[_Rows],
    columns: Sequence[_Columns],
    terms: Sequence[_Term],
) -> Float32[Array, "B K"]:
    """Scores of columns by number; of any term but a column's own it is a product with zero."""
    highest, scores = jax.lax.Precision.HIGHEST, []
    for row, part, term in zip(rows, columns, terms, strict=True):
        local = index - term.first if term.first else index
        chosen = ring.pick(local.reshape(-1), part.embedding)
        chosen = chosen.reshape(*index.shape, -1)
        scores.append(jnp.einsum("bd,bkd->bk", row.embedding, chosen, precision=highest))
    return sum(scores[1:], scores[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Survey:
    """Running statistics of each row over the columns visited so far; None: not asked for."""

    count: Int[Array, " B"]
    weighted: Int[Array, " B"] | None
    unlabelled: Int[Array, " B"]
    dropped: Int[Array, " B"]
    duplicate_query: Int[Array, " B"] | None
    duplicate_target: Int[Array, " B"] | None
    hard: Float32[Array, " B"]
    easy: Float32[Array, " B"]
    log_sum: Float32[Array, " B"]  # log of the sum of exp of the logits, without the positive's
    hardest: Float32[Array, "B K"]
    index: Int[Array, "B K"]  # numbers of the hardest


def _start(rows: _Rows, settings: Settings) -> _Survey:
    size = rows.target_id.size
    width = settings.hard_negatives or 0
    lowest = jnp.full(size, -jnp.inf)
    none = jnp.zeros(size, jnp.int32)
    return ring.vary(
        _Survey(
            count=none,
            weighted=none if settings.weighs_explicit and not width else None,
            unlabelled=none,
            dropped=none,
            duplicate_query=None if settings.duplicate_queries is None else none,
            duplicate_target=None if settings.duplicate_targets is None else none,
            hard=lowest,
            easy=-lowest,
            log_sum=lowest,
            hardest=jnp.full((size, width), -jnp.inf),
            index=jnp.zeros((size, width), jnp.int32),
        )
    )


def _survey(
    start: _Survey,
    rows: _Rows,
    columns: _Columns,
    term: _Term,
    settings: Settings,
    column_block: int,
) -> _Survey:
    column_block = min(column_block, columns.number.size)
    width = settings.hard_negatives or 0

    def look(seen: _Survey, part: _Columns) -> tuple[_Survey, None]:
        scores, labelled, chosen = _compare(rows, part, term, settings)
        valid = chosen.valid
        negative = jnp.where(valid, scores, -jnp.inf)
        if width:
            number = part.number + term.first if term.first else part.number
            number = jnp.broadcast_to(number, scores.shape)
            both = jnp.concatenate([seen.hardest, negative], axis=1)
            hardest, place = jax.lax.top_k(both, width)
            numbers = jnp.concatenate([seen.index, number], axis=1)
            index = jnp.take_along_axis(numbers, place, axis=1)
            log_sum = seen.log_sum
        else:
            hardest, index = seen.hardest, seen.index
            logits = jnp.where(valid, _logits(scores, labelled, rows, settings), -jnp.inf)
            more = jax.nn.logsumexp(logits, axis=1)
            log_sum = jnp.logaddexp(seen.log_sum, more)
        return _Survey(
            count=seen.count + valid.sum(axis=1),
            weighted=_more(seen.weighted, valid & labelled),
            unlabelled=seen.unlabelled + chosen.unlabelled.sum(axis=1),
            dropped=seen.dropped + chosen.dropped.sum(axis=1),
            duplicate_query=_more(seen.duplicate_query, chosen.duplicate_query),
            duplicate_target=_more(seen.duplicate_target, chosen.duplicate_target),
            hard=jnp.maximum(seen.hard, negative.max(axis=1)),
            easy=jnp.minimum(seen.easy, jnp.where(valid, scores, jnp.inf).min(axis=1)),
            log_sum=log_sum,
            hardest=hardest,
            index=index,
        ), None

    def visit(seen: _Survey, columns: _Columns) -> tuple[_Survey, _Columns]:
        return jax.lax.scan(look, seen, ring.cut(columns, column_block))[0], columns

    return ring.visit(visit, start, columns)[0]


def _more(
    seen: Int[Array, " B"] | None, part: Bool[Array, "B block"] | None
) -> Int[Array, " B"] | None:
    return None if seen is None or part is None else seen + part.sum(axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _with_gradient(
    settings: Settings,
    terms: tuple[_Term, ...],
    column_block: int,
    log_sum: Float32[Array, " B"],
    rows: tuple[_Rows, ...],
    columns: tuple[_Columns, ...],
) -> Float32[Array, " B"]:
    """`log_sum`, without gradient, with that of the embeddings and of temperatures by row."""
    return log_sum


def _forward(settings, terms, column_block, log_sum, rows, columns):
    return log_sum, (log_sum, rows, columns)


def _backward(settings, terms, column_block, saved, cotangent):
    log_sum, rows, columns = saved
    parts = [
        _backward_term(settings, column_block, log_sum, cotangent, *part)
        for part in zip(terms, rows, columns, strict=True)
    ]
    return ring.vary(jnp.zeros(log_sum.shape)), *map(tuple, zip(*parts, strict=True))


def _backward_term(settings, column_block, log_sum, cotangent, term, rows, columns):
    """Cotangents of a term's rows and columns."""
    highest = jax.lax.Precision.HIGHEST
    column_block = min(column_block, columns.number.size)
    temperature = temperature_of(settings, rows.temperature)

    def look(d_rows, part):
        columns, d_columns = part
        scores, labelled, chosen = _compare(rows, columns, term, settings)
        logits = _logits(scores, labelled, rows, settings)
        share = jnp.where(chosen.valid, logits - log_sum[:, None], -jnp.inf)
        d_scores = jnp.exp(share) * (cotangent / temperature)[:, None]
        d_embedding, d_temperature = d_rows
        d_embedding += jnp.einsum("bm,md->bd", d_scores, columns.embedding, precision=highest)
        if d_temperature is not None:
            d_temperature -= (d_scores * scores).sum(axis=1) / temperature
        more = jnp.einsum("bm,bd->md", d_scores, rows.embedding, precision=highest)
        return (d_embedding, d_temperature), d_columns + more

    def visit(d_rows, block):
        columns, d_columns = block
        d_rows, parts = jax.lax.scan(
            look, d_rows, (ring.cut(columns, column_block), ring.cut(d_columns, column_block))
        )
        return d_rows, (columns, parts.reshape(-1, parts.shape[-1])[: columns.number.size])

    no_rows, no_columns, nothing = ring.vary(
        tuple(jnp.zeros(x.shape) for x in (rows.embedding, columns.embedding, log_sum))
    )
    start = no_rows, None if rows.temperature is None else nothing
    (d_embedding, d_temperature), (_, d_columns) = ring.visit(visit, start, (columns, no_columns))
    # None: integers and masks have no gradient.
    return (
        _Rows._make((d_embedding, None, None, nothing, None, d_temperature, None)),
        _Columns._make((d_columns, None, None, None)),
    )


_with_gradient.defvjp(_forward, _backward)


def _compare(
    rows: _Rows, columns: _Columns, term: _Term, settings: Settings
) -> tuple[Float[Array, "B block"], Bool[Array, "B block"], Negatives]:
    """Scores, the rows' own explicit negatives, and what is selected."""
    scores = jnp.einsum(
        "bd,md->bm", rows.embedding, columns.embedding, precision=jax.lax.Precision.HIGHEST
    )
    available = (columns.target_id != rows.target_id[:, None]) & columns.mask
    labelled = (rows.labelled[:, :, None] == columns.number).any(axis=1)
    barred = None if rows.barred is None else rows.barred[:, columns.number]
    chosen = select(
        scores,
        rows.positive_score[:, None],
        available,
        labelled,
        rows.closed,
        barred,
        term.margin,
        settings,
    )
    return scores, labelled, chosen


def _logits(
    scores: Float[Array, "B block"],
    labelled: Bool[Array, "B block"],
    rows: _Rows,
    settings: Settings,
) -> Float[Array, "B block"]:
    by_row = None if rows.temperature is None else rows.temperature[:, None]
    logits = scores / temperature_of(settings, by_row)
    weight = settings.hardness * scores
    return logits + (jnp.where(labelled, weight, 0) if settings.weighs_explicit else weight)
