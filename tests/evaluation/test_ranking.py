"""Cosines of rows with their own candidates, by whatever matmuls they are made."""

import numpy as np

from tests.tables import for_each
from unime_jax.evaluation import ranking
from unime_jax.evaluation.encoding.item_table import ItemTable


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


def test_any_of_several_right_candidates_in_front_is_a_hit():
    query, candidates, offsets, vectors = problem(np.random.default_rng(1))
    counts = np.diff(offsets)
    right = np.random.default_rng(2).integers(1, counts + 1).astype(np.int32)
    table = ItemTable(bytes, str)
    for number in range(len(vectors)):
        table.add((str(number), ""), 0)
    ids = [str(n) for n in range(len(query))]
    found = ranking.rank("d", ids, table, query, candidates, offsets, right, vectors)
    scores = ranking.cosines(query, candidates, offsets, vectors)
    for n, count in enumerate(right):
        own, numbers = scores[offsets[n] : offsets[n + 1]], candidates[offsets[n] :]
        best, wrong = own[:count].max(), own[count:]
        assert found.rank[n] == np.sum(wrong > best) and found.gold_score[n] == best
        assert found.items[found.gold[n]].text == str(numbers[0])
        others = wrong[numbers[count : counts[n]] != numbers[0]]
        assert found.hardest[n] == max(others) if len(others) else np.isnan(found.hardest[n])
        assert found.candidates[n] == counts[n] - count + 1
    assert found.hit_at_1 > ranking.rank(
        "d", ids, table, query, candidates, offsets, np.ones_like(right), vectors
    ).hit_at_1  # fmt: skip
