"""Ranking of a whole corpus for each query by cosine: places of the relevant targets, by blocks.

Ties never help. A relevant target stands behind every other candidate of the same score, and of
relevant ones that tie the lower grade stands first, so that neither the order of rows nor a model
that gives all items one vector can raise a score.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from unime_jax.evaluation import ranking

QUERIES = 1024  # of a block of scores
COLUMNS = 4096  # candidates of a block of scores: 16 MiB in float32
SORTED = 4  # relevant targets of a query on average, beyond which sorting a block is faster


@dataclasses.dataclass(frozen=True, eq=False)
class Judgements:
    """Queries, the corpus, and what of it is relevant; items are numbers of a table.

    Query i's relevant targets are relevant[offsets[i] : offsets[i + 1]], at least one. A candidate
    that is the query itself, and not judged relevant, is none of its candidates.
    """

    query: Int32[np.ndarray, " queries"]
    candidates: Int32[np.ndarray, " M"]  # an item that the corpus has twice is there twice
    relevant: Int32[np.ndarray, " relevant"]  # places in `candidates`
    grade: Float32[np.ndarray, " relevant"]  # above 0
    offsets: Int64[np.ndarray, " queries+1"]


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """Relevant targets of each query in the order of the ranking, as `Judgements` has them.

    Attributes:
      place: candidates that stand before a relevant target; 0 is the first.
      hardest: best score of a candidate that is not relevant; -inf where there is none.
    """

    relevant: Int32[np.ndarray, " relevant"]
    grade: Float32[np.ndarray, " relevant"]
    score: Float32[np.ndarray, " relevant"]
    place: Int64[np.ndarray, " relevant"]
    hardest: Float32[np.ndarray, " queries"]


def judgements_of(
    query: Sequence[int], candidates: Sequence[int], grades: Sequence[Mapping[int, float]]
) -> Judgements:
    """Judgements of Python lists; `grades` are by place in `candidates`, of each query."""
    return Judgements(
        np.array(query, np.int32),
        np.array(candidates, np.int32),
        np.array([place for own in grades for place in own], np.int32),
        np.array([grade for own in grades for grade in own.values()], np.float32),
        np.cumsum([0, *map(len, grades)], dtype=np.int64),
    )


def rank(judged: Judgements, vectors: Float32[np.ndarray, "n D"]) -> Places:
    """Places of all relevant targets among the whole corpus, by unit vectors.

    Scores are float64 sums rounded once, as in `ranking.cosines`, so that exact copies tie.
    """
    queries = len(judged.query)
    counts = np.diff(judged.offsets)
    targets = judged.candidates[judged.relevant]
    score = ranking.cosines(judged.query, targets, judged.offsets, vectors)
    ahead = np.zeros(len(score), np.int64)
    hardest = np.full(queries, -np.inf, np.float32)
    masked_row, masked_column = _masked(judged)
    for start in range(0, queries, QUERIES):
        rows = slice(start, min(start + QUERIES, queries))
        first, last = np.searchsorted(masked_row, (rows.start, rows.stop))
        row, column = masked_row[first:last] - start, masked_column[first:last]
        by_column = np.argsort(column, kind="stable")
        row, column = row[by_column], column[by_column]
        for left in range(0, len(judged.candidates), COLUMNS):
            columns = judged.candidates[left : left + COLUMNS]
            dense = ranking.dense_cosines(vectors, judged.query[rows], columns)
            low, high = np.searchsorted(column, (left, left + COLUMNS))
            dense[row[low:high], column[low:high] - left] = -np.inf
            hardest[rows] = np.maximum(hardest[rows], dense.max(axis=1))
            pairs = slice(judged.offsets[rows.start], judged.offsets[rows.stop])
            ahead[pairs] += _ahead(dense, score[pairs], counts[rows])
    owner = np.repeat(np.arange(queries), counts)
    order = np.lexsort((judged.grade, -score, owner))
    before = np.arange(len(score)) - judged.offsets[owner]  # relevant ones of the same query
    return Places(
        judged.relevant[order], judged.grade[order], score[order], ahead[order] + before, hardest
    )


def best(
    judged: Judgements, rows: Int64[np.ndarray, " rows"], vectors: Float32[np.ndarray, "n D"]
) -> tuple[Int32[np.ndarray, "rows 5"], Float32[np.ndarray, "rows 5"], Bool[np.ndarray, "rows 5"]]:
    """The first candidates of a few queries: places in `candidates`, scores, whether relevant.

    -1, NaN and False where a query has fewer.
    """
    top = np.full((len(rows), ranking.TOP), -1, np.int32)
    score = np.full((len(rows), ranking.TOP), np.nan, np.float32)
    is_relevant = np.zeros((len(rows), ranking.TOP), bool)
    for number, row in enumerate(rows.tolist()):
        query = judged.query[row : row + 1]
        scores = ranking.dense_cosines(vectors, query, judged.candidates)[0]
        relevant = np.zeros(len(scores), bool)
        relevant[judged.relevant[judged.offsets[row] : judged.offsets[row + 1]]] = True
        scores[(judged.candidates == query) & ~relevant] = -np.inf
        order = np.lexsort((relevant, -scores))[: ranking.TOP]  # stable: then as in the corpus
        order = order[np.isfinite(scores[order])]
        top[number, : len(order)], score[number, : len(order)] = order, scores[order]
        is_relevant[number, : len(order)] = relevant[order]
    return top, score, is_relevant


def _ahead(
    dense: Float32[np.ndarray, "rows columns"],
    score: Float32[np.ndarray, " relevant"],
    counts: Int64[np.ndarray, " rows"],
) -> Int64[np.ndarray, " relevant"]:
    """How many of its row in `dense`, which may be reordered, are not below each score.

    `counts`: scores of each row.
    """
    ahead = np.zeros(len(score), np.int64)
    starts = np.cumsum(counts) - counts
    if counts.mean() > SORTED:
        dense.sort(axis=1)
        for row, start, count in zip(dense, starts.tolist(), counts.tolist()):
            own = slice(start, start + count)
            ahead[own] = len(row) - np.searchsorted(row, score[own], side="left")
        return ahead
    for slot in range(counts.max()):
        having = np.flatnonzero(counts > slot)
        block = dense if len(having) == len(dense) else dense[having]
        pair = starts[having] + slot
        ahead[pair] = np.count_nonzero(block >= score[pair, None], axis=1)
    return ahead


def _masked(
    judged: Judgements,
) -> tuple[Int64[np.ndarray, " masked"], Int64[np.ndarray, " masked"]]:
    """(query, candidate) of those that no relevant target is ranked against, by query.

    They are the relevant ones and the query itself.
    """
    queries = len(judged.query)
    owner = np.repeat(np.arange(queries), np.diff(judged.offsets))
    by_item = np.argsort(judged.candidates, kind="stable")
    items = judged.candidates[by_item]
    low, high = (np.searchsorted(items, judged.query, side) for side in ("left", "right"))
    itself = np.repeat(np.arange(queries), high - low)
    within = np.arange(len(itself)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
    column = by_item[low[itself] + within]
    row = np.concatenate([owner, itself])
    order = np.argsort(row, kind="stable")
    return row[order], np.concatenate([judged.relevant.astype(np.int64), column])[order]
