"""Ranking of each row's own candidates by cosine: scores, ranks, ties and the best few."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from unime_jax.batch import Item
from unime_jax.evaluation.encoding.item_table import ItemTable

TOP = 5  # candidates of a row that are kept for display
ALIGNED = 32  # pairs of a dataset whose full similarity matrix is kept
BLOCK = 2**22  # numbers of a float64 block: 32 MiB
SHARED = 32  # scores computed for one that is asked for, at most, where rows share candidates


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetResult:
    """Ranks and scores of the candidates of one dataset's rows. Scores are cosines.

    `query`, `gold` and `top` are numbers in `items`, which carry no image bytes. `wrong` means any
    candidate that is not the gold item; a row without one has NaN for `hardest` and `easiest`.
    """

    name: str
    ids: tuple[str, ...]
    items: tuple[Item, ...]
    query: Int32[np.ndarray, " rows"]
    gold: Int32[np.ndarray, " rows"]
    candidates: Int32[np.ndarray, " rows"]  # how many the row had
    rank: Int32[np.ndarray, " rows"]  # candidates scored above the gold; 0 is a hit
    tied: Bool[np.ndarray, " rows"]  # more than one candidate holds the best score
    gold_score: Float32[np.ndarray, " rows"]
    hardest: Float32[np.ndarray, " rows"]  # best wrong candidate
    easiest: Float32[np.ndarray, " rows"]  # worst wrong candidate
    top: Int32[np.ndarray, "rows 5"]  # best candidates in order, -1 where the row has fewer
    top_score: Float32[np.ndarray, "rows 5"]
    aligned: Float32[np.ndarray, "pairs pairs"]  # first rows with distinct sides: query i . gold j

    @property
    def hit_at_1(self) -> float:
        """Percent of rows won by the gold; a tie goes to the lowest index, which is the gold."""
        return 100.0 * float(np.mean(self.rank == 0))

    @property
    def clear_hit_at_1(self) -> float:
        """Percent of rows whose gold beats every other item but copies of itself.

        Of vectors in few bits many items tie, which `hit_at_1` counts as hits.
        """
        return 100.0 * float(np.mean((self.rank == 0) & ~(self.hardest == self.gold_score)))

    @property
    def strict_hit_at_1(self) -> float:
        """Percent of rows whose gold beats every other candidate: ties lose."""
        return 100.0 * float(np.mean((self.rank == 0) & ~self.tied))


def rank(
    name: str,
    ids: Sequence[str],
    table: ItemTable,
    query: Int32[np.ndarray, " rows"],
    candidates: Int32[np.ndarray, " M"],
    offsets: Int64[np.ndarray, " rows+1"],
    right: Int32[np.ndarray, " rows"],
    vectors: Float32[np.ndarray, "n D"],
) -> DatasetResult:
    """Ranks row i's candidates[offsets[i] : offsets[i + 1]], the gold first, by unit vectors.

    Equal scores rank by index, so that a tie goes to the gold, as in VLM2Vec v1's `eval.py`. The
    first right[i] candidates are all right: they are one candidate, the first of them with the best
    score of any, so that one of them in front is a hit.
    """
    count = len(query)
    scores = cosines(query, candidates, offsets, vectors)
    gold, rank = candidates[offsets[:-1]], np.zeros(count, np.int32)
    tied = np.zeros(count, bool)
    gold_score, hardest, easiest = np.full((3, count), np.nan, np.float32)
    top = np.full((count, TOP), -1, np.int32)
    top_score = np.full((count, TOP), np.nan, np.float32)
    for n in range(count):
        part = slice(offsets[n], offsets[n + 1])
        own, score = candidates[part], scores[part]
        if (several := int(right[n])) > 1:
            own = np.append(own[0], own[several:])
            score = np.append(score[:several].max(), score[several:])
        gold_score[n] = score[0]
        rank[n] = np.sum(score > score[0])
        tied[n] = np.sum(score == score.max()) > 1
        wrong = score[own != own[0]]
        if len(wrong):
            hardest[n], easiest[n] = wrong.max(), wrong.min()
        best = np.argsort(-score, kind="stable")[:TOP]  # stable: the lowest index wins a tie
        top[n, : len(best)], top_score[n, : len(best)] = own[best], score[best]
    pairs = _distinct_pairs(query, gold)
    kept, renumbered = np.unique(np.concatenate([query, gold, top.ravel()]), return_inverse=True)
    first = int(kept[0] == -1)  # -1 sorts first and stays -1
    query, gold, top = np.split((renumbered - first).astype(np.int32), [count, 2 * count])
    return DatasetResult(
        name=name,
        ids=tuple(ids),
        items=tuple(table.bare(i) for i in kept[first:].tolist()),
        query=query,
        gold=gold,
        candidates=(np.diff(offsets) - right + 1).astype(np.int32),
        rank=rank,
        tied=tied,
        gold_score=gold_score,
        hardest=hardest,
        easiest=easiest,
        top=top.reshape(count, TOP),
        top_score=top_score,
        aligned=vectors[pairs[:, 0]] @ vectors[pairs[:, 1]].T,
    )


def cosines(
    query: Int32[np.ndarray, " rows"],
    candidates: Int32[np.ndarray, " M"],
    offsets: Int64[np.ndarray, " rows+1"],
    vectors: Float32[np.ndarray, "n D"],
) -> Float32[np.ndarray, " M"]:
    """Cosines of unit vectors: each row's query with each of its candidates, one row after another.

    Summed in float64 and rounded once: BLAS may sum equal rows in different orders; without the
    rounding, exact copies of the gold could differ from it in the last bit and decide the row.
    Where rows share candidates, each block of rows is multiplied with all of them at once.
    """
    unique, column = np.unique(candidates, return_inverse=True)
    scores = np.empty(len(candidates), np.float32)
    if len(query) * len(unique) > SHARED * len(candidates):
        for n in range(len(query)):
            part = slice(offsets[n], offsets[n + 1])
            own = vectors[candidates[part]].astype(np.float64)
            scores[part] = own @ vectors[query[n]].astype(np.float64)
        return scores
    rows = max(1, 2 * BLOCK // len(unique))
    for start in range(0, len(query), rows):
        stop = min(start + rows, len(query))
        part = slice(offsets[start], offsets[stop])
        dense = dense_cosines(vectors, query[start:stop], unique)
        row = np.repeat(np.arange(stop - start), np.diff(offsets[start : stop + 1]))
        scores[part] = dense[row, column[part]]
    return scores


def dense_cosines(
    vectors: Float32[np.ndarray, "n D"],
    rows: Int32[np.ndarray, " rows"],
    columns: Int32[np.ndarray, " columns"],
) -> Float32[np.ndarray, "rows columns"]:
    """Cosines of all `rows` with all `columns`, as `cosines`, in blocks of bounded memory."""
    result = np.empty((len(rows), len(columns)), np.float32)
    size = max(1, BLOCK // max(vectors.shape[1], len(rows)))
    left = vectors[rows].astype(np.float64)
    for start in range(0, len(columns), size):
        right = vectors[columns[start : start + size]].astype(np.float64)
        result[:, start : start + size] = left @ right.T
    return result


def telling_rows(
    margin: Float32[np.ndarray, " rows"], rank: Int32[np.ndarray, " rows"], count: int
) -> list[int]:
    """The most confident mistakes and, if there is room or at least one place, a hit.

    `margin`: by how much the gold scores higher than the best candidate; the lowest comes first.
    """
    failures = [int(n) for n in np.argsort(margin, kind="stable") if rank[n] > 0]
    hits = np.flatnonzero(rank == 0).tolist()
    return [*failures[: count - 1], *hits[:1], *failures[count - 1 :], *hits[1:]][:count]


def _distinct_pairs(
    query: Int32[np.ndarray, " rows"], gold: Int32[np.ndarray, " rows"]
) -> Int32[np.ndarray, "pairs 2"]:
    """The first pairs in which no query and no gold comes twice."""
    pairs: dict[int, int] = {}
    for q, g in zip(query.tolist(), gold.tolist(), strict=True):
        if q not in pairs and g not in pairs.values():
            pairs[q] = g
        if len(pairs) == ALIGNED:
            break
    return np.array(list(pairs.items()), np.int32)
