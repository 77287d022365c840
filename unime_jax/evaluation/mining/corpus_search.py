"""Exact search of a corpus on disk: the best candidates of each query below a limit of its own.

The devices propose (`top_k`), the host decides. A proposal's score is a float64 sum rounded once,
as in `ranking.cosines`, and ties rank by number, so that results do not depend on mesh or blocks.
A query whose proposals leave a doubt, as among many equal vectors, is compared with the whole
corpus by the host.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float32, Int32

from unime_jax import sharding
from unime_jax.evaluation.mining import top_k

SPARE = 16  # proposals beyond those that are asked for
MOST_EXCLUDED = 64  # of a query, that proposals leave room for
STEP = 32  # proposals are a multiple of it, so that few programs are compiled
RESCORED = 2**22  # numbers of the vectors that are rescored at once
HOST_ROWS, HOST_COLUMNS = 64, 16384  # of a block of scores on the host

Vectors = Callable[[np.ndarray], Float32[np.ndarray, "n D"]]  # of candidates, by number


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Candidates that are searched.

    Attributes:
      number: int32 [M], ascending.
      vectors: reads those of some numbers.
      mesh: of this process's own devices.
      columns: candidates of a block, over all devices.
    """

    number: Int32[np.ndarray, " M"]
    vectors: Vectors
    mesh: Mesh
    columns: int
    method: top_k.Method = "exact"


def search(
    queries: Float32[np.ndarray, "queries D"],
    limit: Float32[np.ndarray, " queries"],
    excluded: Sequence[np.ndarray],
    corpus: Corpus,
    count: int,
) -> tuple[Int32[np.ndarray, "queries count"], Float32[np.ndarray, "queries count"]]:
    """Numbers and scores of the best candidates of each query, the best first; -1 and NaN: none.

    Args:
      limit: candidates with a score above it are left out.
      excluded: numbers that are left out, of each query.
    """
    number = np.full((len(queries), count), top_k.NOBODY, np.int32)
    score = np.full((len(queries), count), np.nan, np.float32)
    if not len(corpus.number) or not len(queries):
        return number, score
    proposed, floor = _propose(queries, limit, excluded, corpus, count)
    doubtful = []
    for row, (own, exact) in enumerate(_rescored(queries, proposed, corpus)):
        kept = (exact <= limit[row]) & ~np.isin(own, excluded[row])
        own, exact = own[kept], exact[kept]
        order = np.lexsort((own, -exact))[:count]
        sure = len(order) == count and exact[order[-1]] > floor[row]
        if not sure and floor[row] > -np.inf and corpus.method == "exact":
            doubtful.append(row)
            continue
        number[row, : len(order)], score[row, : len(order)] = own[order], exact[order]
    if doubtful:
        logging.info("%d of %d queries are compared on the host", len(doubtful), len(queries))
    for start in range(0, len(doubtful), HOST_ROWS):
        rows = np.array(doubtful[start : start + HOST_ROWS])
        without = [excluded[row] for row in rows]
        number[rows], score[rows] = _on_host(queries[rows], limit[rows], without, corpus, count)
    return number, score


def error_bound(dimension: int) -> float:
    """Largest difference of a device's score of unit vectors from the exact one."""
    return dimension * 2.0**-23


def _propose(
    queries: np.ndarray,
    limit: np.ndarray,
    excluded: Sequence[np.ndarray],
    corpus: Corpus,
    count: int,
) -> tuple[Int32[np.ndarray, "queries k"], Float32[np.ndarray, " queries"]]:
    """Candidates by the devices' scores, -1: none; no other one's exact score is above `floor`."""
    mesh, bound = corpus.mesh, error_bound(queries.shape[1])
    wanted = count + SPARE + min(max(map(len, excluded)), MOST_EXCLUDED)
    k = -(-wanted // STEP) * STEP
    columns = top_k.columns_of(mesh, min(corpus.columns, len(corpus.number)))
    rows = 2 ** int(np.ceil(np.log2(len(queries))))  # padded, so that few programs are compiled
    padded = np.zeros((rows, queries.shape[1]), np.float32)
    padded[: len(queries)] = queries
    lenient = np.full(rows, -np.inf, np.float32)
    lenient[: len(queries)] = limit + np.float32(bound)
    everywhere = sharding.replicated(mesh)
    on_devices = jax.device_put((padded, lenient), everywhere)
    update, best = top_k.updater(mesh, corpus.method), top_k.nothing_yet(mesh, rows, k)
    for block, numbers in _blocks(corpus, columns):
        parts = jax.device_put((block, numbers), top_k.spread(mesh))
        jax.block_until_ready(best)  # one block is under way while the next is read
        best = update(best, *on_devices, *parts)
    score, number = (np.asarray(part)[:, : len(queries)] for part in best)
    floor = score.min(axis=2).max(axis=0)  # of a device that may have left candidates out
    score, number = (np.moveaxis(part, 0, 1).reshape(len(queries), -1) for part in (score, number))
    if mesh.size > 1:
        order = np.argpartition(-score, k - 1, axis=1)[:, :k]
        score, number = (np.take_along_axis(part, order, axis=1) for part in (score, number))
        floor = np.maximum(floor, score.min(axis=1))
    return number, floor + np.float32(bound)


def _blocks(corpus: Corpus, columns: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Vectors and numbers of one block after the other, the last padded."""
    for start in range(0, len(corpus.number), columns):
        own = corpus.number[start : start + columns]
        vectors = corpus.vectors(own)
        if len(own) < columns:
            vectors = np.pad(vectors, ((0, columns - len(own)), (0, 0)))
            own = np.pad(own, (0, columns - len(own)), constant_values=top_k.NOBODY)
        yield vectors, own


def _rescored(
    queries: np.ndarray, proposed: np.ndarray, corpus: Corpus
) -> Iterator[tuple[Int32[np.ndarray, " n"], Float32[np.ndarray, " n"]]]:
    """Each query's proposals and their exact scores."""
    size = max(1, RESCORED // (proposed.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), size):
        part = proposed[start : start + size]
        unique, place = np.unique(part[part >= 0], return_inverse=True)
        vectors = corpus.vectors(unique)
        ends = np.cumsum((part >= 0).sum(axis=1))
        for row, (own, places) in enumerate(zip(part, np.split(place, ends[:-1]), strict=True)):
            exact = _exact(vectors[places], queries[start + row][None])
            yield own[own >= 0], exact[:, 0]


def _exact(left: np.ndarray, right: np.ndarray) -> Float32[np.ndarray, "left right"]:
    """Scores summed in float64 and rounded once."""
    return (left.astype(np.float64) @ right.astype(np.float64).T).astype(np.float32)


def _on_host(
    queries: np.ndarray,
    limit: np.ndarray,
    excluded: Sequence[np.ndarray],
    corpus: Corpus,
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """As `search`, without the devices."""
    number = np.full((len(queries), count), top_k.NOBODY, np.int32)
    score = np.full((len(queries), count), -np.inf, np.float32)
    for start in range(0, len(corpus.number), HOST_COLUMNS):
        own = corpus.number[start : start + HOST_COLUMNS]
        exact = _exact(queries, corpus.vectors(own))
        exact[exact > limit[:, None]] = -np.inf
        for row, numbers in enumerate(excluded):
            exact[row, np.isin(own, numbers)] = -np.inf
        scores = np.concatenate([score, exact], axis=1)
        numbers = np.concatenate([number, np.broadcast_to(own, exact.shape)], axis=1)
        # Stable: of equal scores the lower number, as numbers ascend from block to block.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        score, number = (np.take_along_axis(part, order, axis=1) for part in (scores, numbers))
    number[score == -np.inf] = top_k.NOBODY
    score[score == -np.inf] = np.nan
    return number, score
