"""Clusters of training rows that are hard negatives of each other, out of a mined table.

B3 (Thirukovalluru et al. 2025, arXiv 2505.11293): rows are vertices, an edge leads from a row to
one whose positive is among its mined candidates, and communities of that graph fill batches. B3
cuts the graph by METIS; here clusters are grown one after the other, each by the free row with the
most edges into it, which needs NumPy alone and takes time in proportion to the edges.
"""

import collections
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Int32

from unime_jax.data.mined_table import Mined
from unime_jax.operations import watchdog

NONE = -1
MOST_INWARD = 256  # edges into a row that are followed: one that all have mined tells none apart


def neighbours(
    mined: Mined, source: str, count: int, ranks: tuple[int, int], seed: int
) -> Int32[np.ndarray, "rows ranks"]:
    """Rows whose positives a row has mined, by rank; -1: none, as of a corpus or other source.

    A candidate that is the positive of several rows, such as a label, leads to one of them, and
    rows with an equal positive are led to different ones: so edges are no more than ranks, and
    spread over all rows.

    Args:
      count: rows of the source that are used, from its head.
      ranks: the first and the last by score, of a row's mined candidates without repetitions.
      seed: decides which rows with equal positives belong together.
    """
    positive = mined.positives(source)[:count]
    first_of, occurrences, by_positive, occurrence = _occurrences(
        positive, len(mined.ids), np.random.default_rng(seed)
    )
    first, last = ranks
    width = max(0, min(last, mined.layout.count) - first + 1)
    edges = np.full((count, width), NONE, np.int32)
    for span, table in mined.blocks(source):
        rows = slice(span.start, min(span.stop, count))
        if rows.start >= count or not width or not len(by_positive):
            break
        table = table[: rows.stop - rows.start]
        number = _by_score(table["number"], table["score"])[:, first - 1 : last]
        of = occurrences[number]  # a number of -1 takes any; it is left out below
        place = first_of[number] + occurrence[rows, None] % np.maximum(of, 1)
        known = (number >= 0) & (of > 0)
        edges[rows] = np.where(known, by_positive[np.where(known, place, 0)], NONE)
    return edges


def _occurrences(
    positive: Int32[np.ndarray, " rows"], candidates: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows by positive, those with an equal one in random order.

    Returns:
      first place of each candidate in the third array; how many rows have it; the rows; and of each
      row, which one of those with its positive it is.
    """
    order = rng.permutation(len(positive))
    order = order[np.argsort(positive[order], kind="stable")].astype(np.int32)
    order = order[np.searchsorted(positive[order], 0) :]  # without rows that cannot be used
    count = np.bincount(positive[order], minlength=candidates).astype(np.int32)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int32)
    occurrence = np.zeros(len(positive), np.int32)
    occurrence[order] = np.arange(len(order), dtype=np.int32) - first[positive[order]]
    return first, count, order, occurrence


def _by_score(number: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Each row's distinct candidates, the best first, then -1."""
    number, score = number.copy(), np.where(np.isnan(score), -np.inf, score)
    for _ in range(2):  # the second moves repetitions to the end
        place = np.lexsort((number, -score), axis=1)
        number, score = (np.take_along_axis(part, place, axis=1) for part in (number, score))
        repeated = np.zeros(number.shape, bool)
        repeated[:, 1:] = number[:, 1:] == number[:, :-1]
        number[repeated], score[repeated] = NONE, -np.inf
    return number


def partition(
    edges: Int32[np.ndarray, "rows ranks"],
    positive: Int32[np.ndarray, " rows"],
    size: int,
    seed: int,
) -> Int32[np.ndarray, " rows"]:
    """All rows in an order of which every `size` are a cluster; the last has what is left over.

    From a free row on, drawn by `seed`, a cluster takes the free row with the most edges to and
    from its rows, until it has `size`; of equal ones that which was met first. No two have an equal
    positive, as those are no negatives of each other. Clusters that find no free row go on with the
    rows of the smallest of their kind.

    One row after the other: at 100 edges a row about 0.02 ms and, with the edges, 2.3 kB a row.
    """
    count = len(edges)
    source, start = _inward(edges)
    gain, free = np.zeros(count, np.int32), np.ones(count, bool)
    whole: list[list[int]] = []
    parts: list[list[int]] = []
    for first in np.random.default_rng(seed).permutation(count).tolist():
        if free[first]:
            members = _grow(first, edges, source, start, positive, size, gain, free)
            (whole if len(members) == size else parts).append(members)
            watchdog.progress()
    whole += _joined(parts, size)
    return np.array([row for members in whole for row in members], np.int32)


def _inward(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges by their end: those into row i come from source[start[i] : start[i + 1]]."""
    kept = edges >= 0
    offset = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    ones = np.ones(int(offset[-1]), np.int8)
    shape = len(edges), len(edges)
    by_end = scipy.sparse.csr_array((ones, edges[kept], offset), shape=shape).tocsc()
    return by_end.indices, by_end.indptr


def _grow(
    first: int,
    edges: np.ndarray,
    source: np.ndarray,
    start: np.ndarray,
    positive: np.ndarray,
    size: int,
    gain: np.ndarray,
    free: np.ndarray,
) -> list[int]:
    """A cluster from its first row on; `gain` is zero before and after, `free` loses its rows."""
    members, targets = [first], {int(positive[first])}
    free[first] = False
    met = np.zeros(0, np.int64)  # free rows with an edge to the cluster, also several times
    while len(members) < size:
        outward, inward = edges[members[-1]], source[start[members[-1]] : start[members[-1] + 1]]
        outward, inward = outward[outward >= 0], inward[free[inward]]
        outward = outward[free[outward]]
        inward = inward[:: -(-len(inward) // MOST_INWARD) or 1]
        gain[outward] += 1
        gain[inward] += 1
        met = np.concatenate([met, outward, inward])
        while len(met):
            row = int(met[gain[met].argmax()])
            met = met[met != row]
            gain[row] = 0
            if int(positive[row]) not in targets:
                break
        else:
            break
        members.append(row)
        targets.add(int(positive[row]))
        free[row] = False
    gain[met] = 0
    return members


def _joined(parts: Sequence[list[int]], size: int) -> list[list[int]]:
    """Clusters that were too small, the largest filled up by the rows of the smallest."""
    queue = collections.deque(sorted(parts, key=len, reverse=True))
    joined = []
    while queue:
        members = queue.popleft()
        while len(members) < size and queue:
            members.append(queue[-1].pop())
            if not queue[-1]:
                queue.pop()
        joined.append(members)
    return joined


def share_inside(
    edges: Int32[np.ndarray, "rows ranks"], order: Int32[np.ndarray, " rows"], size: int
) -> tuple[float, float]:
    """Edges of a row that stay in its cluster, on average, and how many would by chance."""
    cluster = np.empty(len(order), np.int32)
    cluster[order] = np.arange(len(order)) // size
    kept = edges >= 0
    inside = (cluster[np.where(kept, edges, 0)] == cluster[:, None]) & kept
    others = max(len(order) - 1, 1)
    by_chance = kept.sum() * (min(size, len(order)) - 1) / others
    return float(inside.sum() / len(order)), float(by_chance / len(order))
