"""Scores of single rows, from results on disk, and paired bootstraps of them."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from unime_jax.evaluation.benchmarks import composition_rules
from unime_jax.evaluation.benchmarks.composition_rules import RuleResult
from unime_jax.evaluation.benchmarks.mmeb_v2_video import GROUP as VIDEO
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.retrieval import scores as retrieval_scores
from unime_jax.evaluation.scores import RECALLS, RETRIEVAL
from unime_jax.evaluation.side_by_side.columns import DATASETS, Column
from unime_jax.evaluation.tasks.captions import CaptionsResult
from unime_jax.evaluation.tasks.composition import SubsetResult
from unime_jax.evaluation.tasks.retrieval import RetrievalResult

RESAMPLES, SEED = 1000, 0
BLOCK = 2**22  # rows drawn at a time: 32 MiB
DEPTHS = (1, 5, 10)  # of `RECALLS`


def _both(cosines: np.ndarray) -> np.ndarray:
    return composition_rules.both_captions(cosines) & composition_rules.both_images(cosines)


# Which rows are right, by the rules' scores that are shares of rows, from cosines with the images.
_RIGHT: Mapping[str, Mapping[str, Callable[[np.ndarray], np.ndarray]]] = {
    "sugarcrepe": {"": composition_rules.caption_above},
    "text_acc": {"text_acc": composition_rules.caption_first},
    "aro": {"text_acc": composition_rules.caption_first},
    "winoground": {
        "text": composition_rules.both_captions,
        "image": composition_rules.both_images,
        "group": _both,
    },
    "cola": {
        "text_to_image": composition_rules.both_images,
        "image_to_text": composition_rules.both_captions,
        "group": _both,
    },
    "sugarcrepe_pp": {"itt": composition_rules.positives_above},
}


@dataclasses.dataclass(frozen=True, eq=False)
class RowScores:
    """Percent of each row of one dataset, an array a column whose mean over rows is the score.

    `ids` name the rows; () where they have no names, so that they are told by their order.
    `weights` are those of the rows in the mean; None: all the same.
    """

    kind: str
    name: str
    ids: tuple[str, ...]
    values: Mapping[Column, Float64[np.ndarray, " rows"]]
    weights: Float64[np.ndarray, " rows"] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def same_rows(self, other: "RowScores") -> bool:
        """Whether both are of the same rows in the same order."""
        mine, theirs = self.weights, other.weights
        same_weights = mine is theirs or (
            mine is not None and theirs is not None and np.array_equal(mine, theirs)
        )
        return self.ids == other.ids and len(self) == len(other) and same_weights

    def means(self) -> dict[Column, float]:
        """The scores."""
        return {c: float(np.average(v, weights=self.weights)) for c, v in self.values.items()}


def of_result(result: Any, known: Collection[Column]) -> Iterator[RowScores]:
    """Scores by row of a task's result, as far as they have columns among `known`."""
    if isinstance(result, DatasetResult):
        hits = 100.0 * (result.rank == 0)
        places: dict[Column, np.ndarray] = {(n, result.name): hits for n in (DATASETS, VIDEO)}
        yield from _known(RowScores(DATASETS, result.name, _names(result), places), known)
    elif isinstance(result, SubsetResult):
        right = 100.0 * (result.caption_score > result.negative_score)
        column: Column = ("composition", result.name)
        yield from _known(RowScores("composition", result.name, (), {column: right}), known)
    elif isinstance(result, RuleResult):
        yield from _known(_of_rule(result, known), known)
    elif isinstance(result, RetrievalResult):
        columns = dict(zip(RETRIEVAL[:-1], retrieval_scores.per_query(result).T, strict=True))
        # A set that is alone has no scores of its own beside those of all.
        several = ("retrieval", DATASETS, result.name, RETRIEVAL[0]) in known
        place = ("retrieval", DATASETS, result.name) if several else ("retrieval",)
        values = {(*place, metric): column for metric, column in columns.items()}
        yield from _known(RowScores("retrieval", result.name, result.ids, values), known)
    elif isinstance(result, CaptionsResult):
        for way, ranking in result.ways.items():
            yield from _known(_of_captions(result, way, ranking), known)


def _names(result: DatasetResult) -> tuple[str, ...]:
    """Ids of the rows with the files of their images: ids may be mere numbers of rows."""
    sides = zip(result.ids, result.query.tolist(), result.gold.tolist(), strict=True)
    return tuple(
        "/".join([row, *(m.path.rpartition("/")[2] for n in pair for m in result.items[n].media)])
        for row, *pair in sides
    )


def _known(scores: RowScores, known: Collection[Column]) -> Iterator[RowScores]:
    values = {column: v for column, v in scores.values.items() if column in known}
    if values:
        yield dataclasses.replace(scores, values=values)


def _of_rule(result: RuleResult, known: Collection[Column]) -> RowScores:
    """A rule's scores are named after the subset only where the set has several."""
    values: dict[Column, np.ndarray] = {}
    for score, right in _RIGHT.get(result.rule, {}).items():
        long, short = (
            ("composition", "/".join(filter(None, (result.set, part, score))))
            for part in (result.subset, "")
        )
        values[long if long in known else short] = 100.0 * right(result.cosines)
    return RowScores("composition", f"{result.set}/{result.subset}", (), values)


def _of_captions(result: CaptionsResult, way: str, ranking: RetrievalResult) -> RowScores:
    """Recalls by image: captions of one image share what is right for them."""
    counts = result.captions if ranking is result.t2i else np.ones_like(result.captions)
    starts = np.cumsum(counts) - counts
    values: dict[Column, np.ndarray] = {}
    for recall, depth in zip(RECALLS, DEPTHS, strict=True):
        hits = np.add.reduceat((ranking.rank < depth).astype(np.float64), starts)
        values["captions", result.name, way, recall] = 100.0 * hits / counts
    weights = counts.astype(np.float64)
    return RowScores("captions", f"{result.name} {way}", result.i2t.ids, values, weights)


def mean_over_runs(runs: Sequence[RowScores]) -> RowScores:
    """Scores by row, averaged over runs on the same rows."""
    columns = [column for column in runs[0].values if all(column in r.values for r in runs)]
    values = {c: np.mean([run.values[c] for run in runs], axis=0) for c in columns}
    return dataclasses.replace(runs[0], values=values)


def drawn_differences(
    scores: RowScores, baseline: RowScores, seed: int
) -> dict[Column, Float64[np.ndarray, " draws"]]:
    """Mean difference from the baseline in `RESAMPLES` draws of the rows with replacement.

    Both have the same rows, so that a draw takes a row's score from both (a paired bootstrap).
    """
    columns = [column for column in scores.values if column in baseline.values]
    if not columns:
        return {}
    difference = np.stack([scores.values[c] - baseline.values[c] for c in columns], axis=1)
    count = len(difference)
    weights = np.ones(count) if scores.weights is None else scores.weights
    generator = np.random.default_rng([SEED, seed])
    size = max(1, BLOCK // (count * len(columns)))
    draws = []
    for start in range(0, RESAMPLES, size):
        drawn = generator.integers(0, count, (min(size, RESAMPLES - start), count))
        weighted = (difference * weights[:, None])[drawn].sum(axis=1)
        draws.append(weighted / weights[drawn].sum(axis=1)[:, None])
    return dict(zip(columns, np.concatenate(draws).T, strict=True))


def interval(draws: Float64[np.ndarray, " draws"]) -> tuple[float, float]:
    """The middle 95 % of the draws."""
    low, high = np.percentile(draws, (2.5, 97.5)).tolist()
    return low, high
