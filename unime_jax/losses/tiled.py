"""InfoNCE row by row without a [B, M] array, in memory or on the wire.

Candidates pass round the ring of devices; a device has the scores of one block of columns at a
time, and keeps running sums of them, or the hardest. The backward pass computes the blocks again.
Here B and M are a device's own rows and its share of the columns.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Integer

from unime_jax.losses import ring
from unime_jax.losses.barred import Barred
from unime_jax.losses.blocks import Columns, Rows, Term, compare, logits_of
from unime_jax.losses.rows import RowLosses, hardest_losses
from unime_jax.losses.selection import Settings, temperature_of
from unime_jax.losses.tiled_gradients import hardest_with_gradient, with_gradient


def tiled_rows(
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
    column_block: int,
) -> tuple[RowLosses, RowLosses | None]:
    """Rows of the queries, and of their positives if the loss is symmetric: `rows.dense_rows`."""
    positive_id = target_id[positive]
    numbers = jnp.arange(candidates.shape[0])
    columns = Columns(candidates, target_id, mask, numbers)
    pairs = jnp.arange(queries.shape[0])
    others = jnp.ones(pairs.shape, bool) if pair_mask is None else pair_mask
    back_columns = Columns(queries, positive_id, others, pairs)
    count, pair_count = numbers.size, pairs.size
    terms = [Term(settings.false_negative_margin, 0)]
    if settings.query_query:
        terms.append(Term(settings.query_query_margin, count))
    if settings.document_document:
        first = count + pair_count * settings.query_query
        terms.append(Term(settings.document_document_margin, first))

    def block(positive, positive_id, labelled, closed, temperature, barred, columns, back_columns):
        queries, own = back_columns.embedding, ring.pick(positive, columns.embedding)
        score = ring.products(queries, positive, columns.embedding)
        row = Rows(
            queries, positive_id, labelled, positive, score, closed, temperature, barred.columns
        )
        none = dict(labelled=labelled[:, :0], positive=None)
        rows, all_columns = [row], [columns]
        if settings.query_query:
            rows.append(row._replace(**none, barred=barred.pairs))
            all_columns.append(back_columns)
        if settings.document_document:
            rows.append(row._replace(**none, embedding=own))
            all_columns.append(columns)
        forth = _direction(rows, all_columns, tuple(terms), settings, column_block)
        if not settings.symmetric:
            return forth, None
        none["positive"] = back_columns.number
        row = row._replace(**none, embedding=own, barred=barred.pairs)
        return forth, _direction([row], [back_columns], (terms[0],), settings, column_block)

    return ring.blockwise(
        block, positive, positive_id, labelled, closed, temperature, barred, columns, back_columns
    )


def _direction(
    rows: Sequence[Rows],
    columns: Sequence[Columns],
    terms: tuple[Term, ...],
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
    sides = tuple(rows), tuple(columns)
    if settings.hard_negatives is None:
        log_sum, score = with_gradient(settings, terms, column_block, survey.log_sum, *sides)
        gap = jnp.where(live, log_sum - score / temperature, 0)
        losses = jnp.where(live, jax.nn.softplus(gap), 0)
    else:
        hardest, score = hardest_with_gradient(
            terms, column_block, survey.hardest, survey.index, *sides
        )
        explicit = None
        if settings.weighs_explicit:
            explicit = (survey.index[:, :, None] == row.labelled[:, None, :]).any(axis=2)
        losses, weighted = hardest_losses(
            hardest, explicit, score, row.temperature, survey.count, settings
        )
    return RowLosses(
        losses=losses,
        positive=row.positive_score,
        hard=survey.hard,
        easy=survey.easy,
        count=survey.count,
        weighted=weighted,
        unlabelled=survey.unlabelled,
        dropped=survey.dropped,
        duplicate_query=survey.duplicate_query,
        duplicate_target=survey.duplicate_target,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Survey:
    """Running statistics of each row over the columns visited so far; None: not asked for.

    While they are counted, rows are cut into blocks.
    """

    count: Int[Array, "*B"]
    weighted: Int[Array, "*B"] | None
    unlabelled: Int[Array, "*B"]
    dropped: Int[Array, "*B"]
    duplicate_query: Int[Array, "*B"] | None
    duplicate_target: Int[Array, "*B"] | None
    hard: Float32[Array, "*B"]
    easy: Float32[Array, "*B"]
    log_sum: Float32[Array, "*B"]  # log of the sum of exp of the logits, without the positive's
    hardest: Float32[Array, "*B K"]
    index: Int[Array, "*B K"]  # numbers of the hardest


def _start(rows: Rows, settings: Settings) -> _Survey:
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
    rows: Rows,
    columns: Columns,
    term: Term,
    settings: Settings,
    column_block: int,
) -> _Survey:
    size = rows.target_id.size
    row_block, column_block = min(column_block, size), min(column_block, columns.number.size)
    row_blocks = ring.cut(rows, row_block, "edge")

    def visit(seen: _Survey, part: Columns, _: None) -> tuple[_Survey, None]:
        def look(_: None, both: tuple[Rows, _Survey]) -> tuple[None, _Survey]:
            return None, _update(*both, part, term, settings)

        return jax.lax.scan(look, None, (row_blocks, seen))[1], None

    seen = ring.cut(start, row_block)
    return ring.join(ring.visit(visit, seen, columns, column_block)[0], size)


def _update(rows: Rows, seen: _Survey, columns: Columns, term: Term, settings: Settings) -> _Survey:
    """Statistics of some rows with some more columns."""
    scores, labelled, chosen = compare(rows, columns, term, settings)
    valid = chosen.valid
    negative = jnp.where(valid, scores, -jnp.inf)
    hardest, index, log_sum = seen.hardest, seen.index, seen.log_sum
    if settings.hard_negatives:
        width = settings.hard_negatives
        # The hardest so far come first: few of the others beat them, and a heap of them is made at
        # once where top_k has one (XLA on CPUs).
        hardest, place = jax.lax.top_k(jnp.concatenate([hardest, negative], axis=1), width)
        kept = jnp.take_along_axis(index, jnp.clip(place, 0, width - 1), axis=1)
        number = columns.number[jnp.clip(place - width, 0)] + term.first
        index = jnp.where(place < width, kept, number)
    else:
        logits = jnp.where(valid, logits_of(scores, labelled, rows, settings), -jnp.inf)
        log_sum = jnp.logaddexp(log_sum, jax.nn.logsumexp(logits, axis=1))
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
    )


def _more(
    seen: Int[Array, " B"] | None, part: Bool[Array, "B block"] | None
) -> Int[Array, " B"] | None:
    return None if seen is None or part is None else seen + part.sum(axis=1)
