"""The search of a corpus, beside sorted scores of all of it."""

import jax
import numpy as np

from tests.tables import for_each
from unime_jax import sharding
from unime_jax.evaluation import corpus_search, top_k


def unit(shape, seed):
    vectors = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@for_each("devices, columns", [(1, 256), (8, 512), (2, 4096)])
def test_the_best_below_the_limit_are_those_of_the_sorted_corpus(devices, columns):
    rng = np.random.default_rng(0)
    corpus, queries = unit((1500, 16), 1), unit((11, 16), 2)
    corpus[100:180] = corpus[100]  # more copies than are proposed: the host decides
    queries[5] = corpus[100]
    number = np.sort(rng.permutation(1500)[:1300]).astype(np.int32)
    limit = np.full(11, 0.5, np.float32)
    limit[[3, 5]] = np.inf
    limit[7] = -1  # leaves nothing
    excluded = [rng.permutation(number)[: rng.integers(0, 90)] for _ in queries]
    scores = (queries.astype(np.float64) @ corpus.T.astype(np.float64)).astype(np.float32)
    limit[4] = np.sort(scores[4, number])[-20]  # which is a score itself
    mesh = sharding.make_mesh(1, -1, 1, jax.devices()[:devices])
    within = corpus_search.Corpus(number, lambda numbers: corpus[numbers], mesh, columns)
    for count in (3, 40):
        got, got_scores = corpus_search.search(queries, limit, excluded, within, count)
        for row, own in enumerate(excluded):
            allowed = number[(scores[row, number] <= limit[row]) & ~np.isin(number, own)]
            best = allowed[np.lexsort((allowed, -scores[row, allowed]))][:count]
            assert got[row, : len(best)].tolist() == best.tolist()
            assert got_scores[row, : len(best)].tolist() == scores[row, best].tolist()
            assert (got[row, len(best) :] == -1).all()
            assert np.isnan(got_scores[row, len(best) :]).all()
    assert (got[7] == -1).all()


def test_groups_are_fewer_to_sort_and_blocks_divide_among_devices():
    assert top_k.group_width(65536, 64) == 32 and top_k.group_width(64, 64) == 1
    for columns in (96, 1024, 32768):
        for k in (1, 32, 96):
            width = top_k.group_width(columns, k)
            assert columns % width == 0 and columns // width >= min(k, columns)
    mesh = sharding.make_mesh(1, -1, 1, jax.devices()[:8])
    assert top_k.columns_of(mesh, 5) == 8 and top_k.columns_of(mesh, 3000) == 4096
