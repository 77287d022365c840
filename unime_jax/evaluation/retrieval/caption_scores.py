"""Scores of caption retrieval: recalls both ways, and 95 % bootstrap intervals over images."""

from typing import Any

import numpy as np
from jaxtyping import Float64

from unime_jax.evaluation.retrieval.scores import RESAMPLES, SEED
from unime_jax.evaluation.scores import RANKS, RECALLS
from unime_jax.evaluation.tasks.captions import CaptionsResult
from unime_jax.evaluation.tasks.retrieval import RetrievalResult

DEPTHS = (1, 5, 10)  # of `RECALLS`


def of_set(result: CaptionsResult) -> dict[str, Any]:
    """Percent by way and recall, with "intervals", and how many images and captions there are.

    Of clips, "videos" stands in place of "images". Ways have the median and the mean rank, too.

    An interval is of `RESAMPLES` draws of the images with replacement: captions of one image are
    drawn together, as they share what is right for them.
    """
    images = len(result.captions)
    each = np.ones(images, np.int64)
    count = "images" if result.medium == "image" else "videos"
    scores: dict[str, Any] = {count: images, "captions": int(result.captions.sum())}
    for way, ranking in result.ways.items():
        scores[way] = _of_way(ranking, result.captions if ranking is result.t2i else each)
    return scores


def _of_way(result: RetrievalResult, queries: np.ndarray) -> dict[str, Any]:
    """`queries` are how many each image has, one image after another."""
    hits = result.rank[:, None] < np.array(DEPTHS)
    starts = np.cumsum(queries) - queries
    by_image = np.add.reduceat(hits.astype(np.float64), starts)  # of at least one query each
    generator = np.random.default_rng(SEED)
    draws = np.empty((RESAMPLES, len(DEPTHS)))
    for number in range(RESAMPLES):
        drawn = generator.integers(0, len(queries), len(queries))
        draws[number] = _percent(by_image[drawn], queries[drawn])
    means = _percent(by_image, queries).tolist()
    places = result.rank + 1
    low, high = np.percentile(draws, (2.5, 97.5), axis=0).tolist()
    return {
        **dict(zip(RECALLS, means, strict=True)),
        **dict(zip(RANKS, (float(np.median(places)), float(np.mean(places))), strict=True)),
        "intervals": {name: [a, b] for name, a, b in zip(RECALLS, low, high, strict=True)},
    }


def _percent(hits: Float64[np.ndarray, "images 3"], queries: np.ndarray) -> np.ndarray:
    """Percent of queries with a hit, of the hits and queries of some images."""
    return 100 * hits.sum(axis=0) / queries.sum()
