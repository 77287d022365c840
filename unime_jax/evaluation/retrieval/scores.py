"""Scores of retrieval sets: means over queries, and 95 % bootstrap intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from unime_jax.evaluation.scores import RETRIEVAL
from unime_jax.evaluation.tasks.retrieval import RetrievalResult

RESAMPLES, SEED = 1000, 0  # of the bootstrap


def of_sets(results: Mapping[str, RetrievalResult]) -> dict[str, Any]:
    """Scores by name, with those of each set in "datasets" where there are several.

    Percent are the plain mean over sets, "median_rank" is that of all queries, from 1. "intervals"
    has [low, high] of each: of `RESAMPLES` draws of the queries of every set.
    """
    scores = _of_some(list(results.values()))
    if len(results) > 1:
        scores["datasets"] = {name: _of_some([result]) for name, result in results.items()}
    return scores


def per_query(result: RetrievalResult) -> Float64[np.ndarray, "queries 7"]:
    """Percent of each query, in the order of `scores.RETRIEVAL`.

    R@k is 100 where any relevant target is among the first k, as in caption retrieval; trec_eval's
    recall would be the share of the relevant ones. Equal where one target is relevant.
    """
    hits = [result.rank < k for k in (1, 5, 10)]
    ndcg = [result.ndcg_5, result.ndcg]
    columns = [*hits, 1 / (result.rank + 1.0), *ndcg, result.average_precision]
    return 100 * np.stack(columns, axis=1).astype(np.float64)


def _of_some(results: Sequence[RetrievalResult]) -> dict[str, Any]:
    values, ranks = [per_query(result) for result in results], [r.rank + 1 for r in results]
    everything = [np.arange(len(rank)) for rank in ranks]
    means = _statistics(values, ranks, everything)
    generator = np.random.default_rng(SEED)
    draws = np.empty((RESAMPLES, len(RETRIEVAL)))
    for number in range(RESAMPLES):
        drawn = [generator.integers(0, len(rank), len(rank)) for rank in ranks]
        draws[number] = _statistics(values, ranks, drawn)
    low, high = np.percentile(draws, (2.5, 97.5), axis=0).tolist()
    return {
        **dict(zip(RETRIEVAL, means.tolist(), strict=True)),
        "queries": sum(len(result.ids) for result in results),
        "candidates": sum(result.candidates for result in results),
        "intervals": {name: [a, b] for name, a, b in zip(RETRIEVAL, low, high, strict=True)},
    }


def _statistics(
    values: Sequence[np.ndarray], ranks: Sequence[np.ndarray], drawn: Sequence[np.ndarray]
) -> np.ndarray:
    """Means over sets of the means of the queries drawn, and the median rank of all of them."""
    means = np.mean([v[rows].mean(axis=0) for v, rows in zip(values, drawn, strict=True)], axis=0)
    together = np.concatenate([rank[rows] for rank, rows in zip(ranks, drawn, strict=True)])
    return np.append(means, np.median(together))
