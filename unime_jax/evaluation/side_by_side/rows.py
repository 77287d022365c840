"""Scores of single rows, from results on disk, and paired bootstraps of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from unime_jax.evaluation import retrieval_scores
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.scores import RETRIEVAL
from unime_jax.evaluation.side_by_side.columns import DATASETS, Column
from unime_jax.evaluation.tasks.composition import SubsetResult
from unime_jax.evaluation.tasks.retrieval import RetrievalResult

RESAMPLES, SEED = 1000, 0
BLOCK = 2**22  # rows drawn at a time: 32 MiB


@dataclasses.dataclass(frozen=True, eq=False)
class RowScores:
    """Percent of each row of one dataset, an array a column whose mean over rows is the score.

    `ids` name the rows; () where they have no names, so that they are told by their order.
    """

    ids: tuple[str, ...]
    values: Mapping[Column, Float64[np.ndarray, " rows"]]

    def same_rows(self, other: "RowScores") -> bool:
        """Whether both are of the same rows in the same order."""
        counts = {len(values) for values in (*self.values.values(), *other.values.values())}
        return self.ids == other.ids and len(counts) == 1


def of_result(result: Any) -> RowScores | None:
    """Scores by row of a task's result; None of a kind that has none."""
    if isinstance(result, DatasetResult):
        hits = 100.0 * (result.rank == 0)
        return RowScores(result.ids, {(DATASETS, result.name): hits})
    if isinstance(result, SubsetResult):
        right = 100.0 * (result.caption_score > result.negative_score)
        return RowScores((), {("composition", result.name): right})
    if isinstance(result, RetrievalResult):
        columns = retrieval_scores.per_query(result).T
        values: dict[Column, np.ndarray] = {
            ("retrieval", DATASETS, result.name, metric): column
            for metric, column in zip(RETRIEVAL[:-1], columns, strict=True)
        }
        return RowScores(result.ids, values)
    return None


def mean_over_runs(runs: Sequence[RowScores]) -> RowScores:
    """Scores by row, averaged over runs on the same rows."""
    columns = runs[0].values
    values = {c: np.mean([run.values[c] for run in runs], axis=0) for c in columns}
    return RowScores(runs[0].ids, values)


def drawn_differences(
    scores: RowScores, baseline: RowScores, seed: int
) -> dict[Column, Float64[np.ndarray, " draws"]]:
    """Mean difference from the baseline in `RESAMPLES` draws of the rows with replacement.

    Both have the same rows, so that a draw takes a row's score from both (a paired bootstrap).
    """
    columns = [column for column in scores.values if column in baseline.values]
    difference = np.stack([scores.values[c] - baseline.values[c] for c in columns], axis=1)
    count = len(difference)
    generator = np.random.default_rng([SEED, seed])
    size = max(1, BLOCK // (count * len(columns)))
    draws = [
        difference[generator.integers(0, count, (min(size, RESAMPLES - start), count))].mean(axis=1)
        for start in range(0, RESAMPLES, size)
    ]
    return dict(zip(columns, np.concatenate(draws).T, strict=True))


def interval(draws: Float64[np.ndarray, " draws"]) -> tuple[float, float]:
    """The middle 95 % of the draws."""
    low, high = np.percentile(draws, (2.5, 97.5)).tolist()
    return low, high
