"""Scores of an evaluation as flat columns, whatever kinds of scores it has."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.benchmarks.mmeb_v2_video import GROUP as VIDEO

Column = tuple[str, ...]  # path of a number in a side of evaluation.json

AVERAGES, DATASETS, CHOSEN = "averages", "datasets", "chosen"  # groups of columns
COMPOSITION: Column = ("composition",)  # the mean of its subsets
# Numbers that say how large a set is.
COUNTS = (
    "queries", "candidates", "rows", "images", "videos", "captions", "pairs", "items", "labels",
)  # fmt: skip
LESS_IS_BETTER = ("median_rank", "mean_rank", "kl")
NOT_SCORES = ("intervals",)


def flatten(scores: Mapping[str, Any]) -> dict[Column, float]:
    """Every number of a side of evaluation.json by its path; kinds need not be known.

    Lists and texts are left out, and intervals, which are of numbers. `COMPOSITION` is the mean of
    the subsets that are no benchmark's, over which no mean is taken ("<set>/<score>").
    """
    values = dict(_numbers(scores, ()))
    subsets = [c for c in values if c[0] == "composition" and len(c) == 2 and "/" not in c[1]]
    if subsets:
        values[COMPOSITION] = sum(values[column] for column in subsets) / len(subsets)
    return values


def _numbers(value: Any, path: Column) -> Iterator[tuple[Column, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in NOT_SCORES:
                yield from _numbers(inner, (*path, str(key)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def grouped(columns: Iterable[Column]) -> dict[str, list[Column]]:
    """Columns by their heading: averages in MMEB's order first, then kinds as they come."""
    distinct = list(dict.fromkeys(columns))
    order = {name: place for place, name in enumerate(("All", *scores_lib.COLUMNS, "meta_mean"))}
    averages: list[Column] = [column for column in distinct if len(column) == 1]
    averages.sort(key=lambda column: 0 if column == ("All",) else order.get(column[0], len(order)))
    groups: dict[str, list[Column]] = {AVERAGES: averages, CHOSEN: [], DATASETS: []}
    for column in distinct:
        if len(column) > 1:
            groups.setdefault(column[0], []).append(column)
    return {name: members for name, members in groups.items() if members}


def label(column: Column) -> str:
    """A column's name below the heading of its group."""
    inner = column if len(column) == 1 else column[1:]
    return " ".join(part for part in inner if part != DATASETS) or column[0]


def is_count(column: Column) -> bool:
    """Whether the number is the size of a set."""
    return column[-1] in COUNTS


def less_is_better(column: Column) -> bool:
    return column[-1] in LESS_IS_BETTER


def digits(column: Column, values: Iterable[float]) -> int:
    """Decimals to be shown: none of counts, three where all are at most 1 (nats, shares)."""
    if is_count(column):
        return 0
    return 3 if all(abs(value) <= 1 for value in values) and not _is_percent(column) else 1


def _is_percent(column: Column) -> bool:
    return len(column) == 1 or column[0] in (DATASETS, CHOSEN, "composition", "retrieval", VIDEO)
