"""Places and metrics of relevant targets, beside a sorted corpus and scikit-learn's metrics."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from unime_jax.evaluation.retrieval import corpus_ranking
from unime_jax.evaluation.retrieval.corpus_ranking import judgements_of
from unime_jax.evaluation.tasks import retrieval


@st.composite
def cases(draw):
    """Vectors of few small integers, whose scores are exact and often tie; items that recur."""
    items = draw(st.integers(2, 12))
    numbers = st.lists(st.integers(-1, 1), min_size=3, max_size=3)
    vectors = np.array(draw(st.lists(numbers, min_size=items, max_size=items)), np.float32)
    item = st.integers(0, items - 1)
    candidates = draw(st.lists(item, min_size=1, max_size=14))
    query = draw(st.lists(item, min_size=1, max_size=7))
    places = st.integers(0, len(candidates) - 1)
    grade = st.sampled_from([1.0, 2.0, 3.0])
    own = st.dictionaries(places, grade, min_size=1, max_size=len(candidates))
    grades = draw(st.lists(own, min_size=len(query), max_size=len(query)))
    return vectors, query, candidates, grades


def ranked(vectors, query, candidates, grades):
    """The corpus of one query in order, without the query itself: ties never help."""
    scores = vectors[candidates] @ vectors[query]
    kept = [n for n, item in enumerate(candidates) if item != query or n in grades]
    return sorted(kept, key=lambda n: (-scores[n], n in grades, grades.get(n, 0)))


@given(cases(), st.sampled_from([0, 99]))
def test_places_and_metrics_are_those_of_the_sorted_corpus(case, sorted_from):
    vectors, query, candidates, grades = case
    judged = judgements_of(query, candidates, grades)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_ranking, "QUERIES", 2)
        patch.setattr(corpus_ranking, "COLUMNS", 3)
        patch.setattr(corpus_ranking, "SORTED", sorted_from)
        places = corpus_ranking.rank(judged, vectors)
    ndcg = {k: retrieval.ndcg(judged, places, k) for k in (5, 10)}
    precision = retrieval.average_precision(judged, places)
    for n, own in enumerate(grades):
        part = slice(judged.offsets[n], judged.offsets[n + 1])
        order = ranked(vectors, query[n], candidates, own)
        expected = [place for place, target in enumerate(order) if target in own]
        assert places.place[part].tolist() == expected
        assert places.grade[part].tolist() == [own[order[place]] for place in expected]
        assert {*places.relevant[part].tolist()} == own.keys()
        others = [vectors[candidates[c]] @ vectors[query[n]] for c in order if c not in own]
        assert places.hardest[n] == max(others, default=-np.inf)
        relevance = np.array([own.get(target, 0) for target in order])
        falling = -np.arange(len(order), dtype=float)
        assert precision[n] == pytest.approx(average_precision_score(relevance > 0, falling))
        if len(order) > 1:  # scikit-learn refuses one candidate
            for k in (5, 10):
                assert ndcg[k][n] == pytest.approx(ndcg_score([relevance], [falling], k=k))


@given(cases())
def test_the_first_candidates_are_those_of_the_sorted_corpus(case):
    vectors, query, candidates, grades = case
    judged = judgements_of(query, candidates, grades)
    top, score, relevant = corpus_ranking.best(judged, np.arange(len(query)), vectors)
    for n, own in enumerate(grades):
        order = ranked(vectors, query[n], candidates, own)[:5]
        scores = vectors[candidates] @ vectors[query[n]]
        padding = [-1] * (5 - len(order))
        assert [s for s in score[n].tolist() if s == s] == scores[order].tolist()
        assert relevant[n].tolist()[: len(order)] == [c in own for c in order]
        assert top[n, len(order) :].tolist() == padding


@given(cases(), st.randoms())
def test_the_order_of_rows_changes_nothing(case, random):
    vectors, query, candidates, grades = case
    shuffled = random.sample(range(len(candidates)), len(candidates))
    moved = {old: new for new, old in enumerate(shuffled)}
    again = judgements_of(
        query,
        [candidates[old] for old in shuffled],
        [{moved[place]: grade for place, grade in own.items()} for own in grades],
    )
    first = judgements_of(query, candidates, grades)
    places = corpus_ranking.rank(first, vectors)
    others = corpus_ranking.rank(again, vectors)
    np.testing.assert_array_equal(places.place, others.place)
    np.testing.assert_array_equal(
        retrieval.ndcg(first, places, 5), retrieval.ndcg(again, others, 5)
    )


def test_what_ties_with_the_target_stands_before_it():
    # A model with one vector for everything stands last.
    candidates = list(range(10, 30))
    judged = judgements_of([0, 1], candidates, [{0: 1.0}, {19: 1.0, 3: 2.0}])
    places = corpus_ranking.rank(judged, np.full((30, 7), 1 / np.sqrt(7), np.float32))
    assert places.place.tolist() == [19, 18, 19] and places.grade.tolist() == [1, 1, 2]
    assert retrieval.ndcg(judged, places, 10).tolist() == [0, 0]

    # Exact copies of the target stand before it wherever they lie, though sums are not exact.
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((60, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    copies = rng.permutation(np.tile(np.arange(40, 50), 50))
    candidates = [*range(20, 60), *copies.tolist()]
    judged = judgements_of(range(20), candidates, [{20 + n % 10: 1.0} for n in range(20)])
    places = corpus_ranking.rank(judged, vectors)
    for n in range(20):
        scores = vectors[candidates].astype(np.float64) @ vectors[n].astype(np.float64)
        assert places.place[n] == np.sum(scores > scores[20 + n % 10] - 1e-12) - 1

    # Scores are never all in memory
    queries, corpus = 3000, 12_000
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((queries + corpus, 8)).astype(np.float32)
    judged = judgements_of(
        range(queries), range(queries, queries + corpus), [{n: 1.0} for n in range(queries)]
    )
    tracemalloc.start()
    try:
        places = corpus_ranking.rank(judged, vectors)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < queries * corpus * 4 / 1.5  # 144 MB
    scores = vectors[queries:] @ vectors[0]
    assert places.place[0] == np.sum(scores > scores[0])
