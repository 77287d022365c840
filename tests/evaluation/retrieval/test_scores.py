"""Scores of retrieval sets: means, medians, intervals, and what the log says of them."""

import json

import numpy as np
import pytest

from unime_jax.batch import Item
from unime_jax.evaluation import score_table, scores
from unime_jax.evaluation.retrieval import scores as retrieval_scores
from unime_jax.evaluation.tasks.retrieval import RetrievalResult


def result(name, ranks, candidates=100):
    """Of single relevant targets at these places, from 0."""
    ranks = np.array(ranks, np.int32)
    shown = np.zeros(1, np.int32)
    return RetrievalResult(
        name=name,
        ids=tuple(map(str, range(len(ranks)))),
        items=(Item("query"), Item("target")),
        candidates=candidates,
        rank=ranks,
        ndcg_5=np.where(ranks < 5, 1 / np.log2(ranks + 2.0), 0.0),
        ndcg=np.where(ranks < 10, 1 / np.log2(ranks + 2.0), 0.0),
        average_precision=1 / (ranks + 1.0),
        gold_score=np.ones(len(ranks), np.float32),
        hardest=np.ones(len(ranks), np.float32),
        shown=shown,
        query=shown,
        gold=shown + 1,
        top=np.array([[1, -1, -1, -1, -1]], np.int32),
        top_score=np.ones((1, 5), np.float32),
        top_relevant=np.ones((1, 5), bool),
    )


def test_scores_of_a_set_and_of_several_which_count_the_same():
    # One set.
    found = retrieval_scores.of_sets({"own": result("own", [0, 0, 3, 9, 10, 99])})
    assert found["R@1"] == pytest.approx(100 * 2 / 6)
    assert found["R@5"] == pytest.approx(50) and found["R@10"] == pytest.approx(100 * 4 / 6)
    reciprocal = [1, 1, 1 / 4, 1 / 10, 1 / 11, 1 / 100]
    assert found["MRR"] == found["mAP"] == pytest.approx(100 * np.mean(reciprocal))
    assert found["nDCG@10"] == pytest.approx(100 * (2 + 1 / np.log2(5) + 1 / np.log2(11)) / 6)
    assert found["nDCG@5"] == pytest.approx(100 * (2 + 1 / np.log2(5)) / 6)
    assert found["median_rank"] == 7 and found["queries"] == 6 and found["candidates"] == 100
    assert "datasets" not in found and found["intervals"].keys() == set(scores.RETRIEVAL)

    # Each of several counts the same.
    sets = {"few": result("few", [0, 0], 5), "many": result("many", [1] * 6 + [30] * 4, 50)}
    found = retrieval_scores.of_sets(sets)
    assert found["R@1"] == 50 and found["R@5"] == pytest.approx((100 + 60) / 2)
    assert found["median_rank"] == 2 and found["queries"] == 12 and found["candidates"] == 55
    assert found["datasets"].keys() == sets.keys()
    for name, own in found["datasets"].items():
        assert own == retrieval_scores.of_sets({name: sets[name]})
    low, high = found["intervals"]["R@5"]
    alone = found["datasets"]["many"]["intervals"]["R@5"]
    assert high - low == pytest.approx((alone[1] - alone[0]) / 2, abs=4)  # the other is certain

    # Intervals are those of the binomial and of the seed
    rng = np.random.default_rng(1)
    ranks = np.where(rng.random(400) < 0.3, 0, 20)
    share = np.mean(ranks == 0)
    half = 196 * np.sqrt(share * (1 - share) / 400)
    found = retrieval_scores.of_sets({"own": result("own", ranks)})
    low, high = found["intervals"]["R@1"]
    assert low == pytest.approx(100 * share - half, abs=0.2 * half)
    assert high == pytest.approx(100 * share + half, abs=0.2 * half)
    assert found == retrieval_scores.of_sets({"other": result("other", ranks)})
    for column in scores.RETRIEVAL:
        low, high = found["intervals"][column]
        assert low <= found[column] <= high
    assert found["intervals"]["median_rank"] == [21, 21]

    # The table has all sets then each with intervals
    def side(*ranks):
        sets = {"a": result("a", ranks), "\x1bb": result("b", [0, 0])}
        return {"retrieval": retrieval_scores.of_sets(sets)}

    table = score_table.table(side(5, 5), side(0, 0)).split("\n\n")
    assert table[0].split("\n") == [
        "retrieval: 4 queries, 200 candidates",
        "retrieval %       R@1    R@5   R@10    MRR  nDCG@5  nDCG@10    mAP  median_rank",
        "before           50.0   50.0  100.0   58.3    50.0     67.8   58.3          3.5",
        "after           100.0  100.0  100.0  100.0   100.0    100.0  100.0          1.0",
        "95 % from       100.0  100.0  100.0  100.0   100.0    100.0  100.0          1.0",
        "95 % to         100.0  100.0  100.0  100.0   100.0    100.0  100.0          1.0",
        "change          +50.0  +50.0   +0.0  +41.7   +50.0    +32.2  +41.7         -2.5",
    ]
    assert table[1].startswith("a: 2 queries, 100 cand") and table[2].startswith(
        "\\x1bb: 2 queries"
    )
    assert "change" not in score_table.table(None, side(1, 1), "score")
    assert score_table.table({"retrieval": side(3)["retrieval"]}, {}).count("before") == 3


def test_scores_of_retrieval_are_checked_as_they_are_read(tmp_path):
    found = retrieval_scores.of_sets({"a": result("a", [0, 1]), "b": result("b", [2])})
    scores.write_scores(tmp_path, "after", {"retrieval": found})
    assert scores.read_scores(tmp_path) == {"after": {"retrieval": found}}
    found["datasets"]["b"]["mAP"] = "high"
    scores.write_scores(tmp_path, "after", {"retrieval": found})
    with pytest.raises(ValueError, match="'after' has retrieval set 'b' without R@1, .*evaluate a"):
        scores.read_scores(tmp_path)
    for damaged in ([], {"datasets": []}):
        (tmp_path / "evaluation.json").write_text(json.dumps({"after": {"retrieval": damaged}}))
        with pytest.raises(ValueError, match="retrieval that is no object|without R@1"):
            scores.read_scores(tmp_path)
