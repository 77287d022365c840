"""Cosines of rows with their own candidates, by whatever matmuls they are made."""

import numpy as np

from tests.tables import for_each
from unime_jax.evaluation import ranking


def problem(rng, rows=40, pool=30, width=5):
    counts = rng.integers(1, 9, rows)
    vectors = rng.normal(size=(pool + rows, width))
    vectors[3] = vectors[4]  # two names of one vector
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    candidates = rng.integers(0, pool, counts.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return np.arange(pool, pool + rows, dtype=np.int32), candidates, offsets, vectors


@for_each("limits", [{}, {"SHARED": 0}, {"BLOCK": 60}, {"BLOCK": 1}])
def test_blocks_and_single_rows_give_the_same_bits(monkeypatch, limits):
    query, candidates, offsets, vectors = problem(np.random.default_rng(0))
    for name, value in limits.items():
        monkeypatch.setattr(ranking, name, value)
    scores = ranking.cosines(query, candidates, offsets, vectors)
    assert scores.dtype == np.float32
    for n, q in enumerate(query):
        own = slice(offsets[n], offsets[n + 1])
        exact = vectors[candidates[own]].astype(np.float64) @ vectors[q].astype(np.float64)
        np.testing.assert_array_equal(scores[own], exact.astype(np.float32))
