"""Scores that papers have printed, with their source, and what they may stand beside.

`published.json` holds the tables of each paper; known misprints are corrected there, and noted.
"""

import dataclasses
import fnmatch
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unime_jax.evaluation import scores as scores_lib

FILE = pathlib.Path(__file__).parent / "published.json"
MMEB, CAPTIONS, SUGARCREPE = "MMEB", "captions", "SugarCrepe"
AVERAGING = ("36-mean", "mean of 4 metas", "none", "not stated: mean of subsets or of rows")
MMEB_ROWS = 1000  # of each of its 36 datasets
# Sets of captions by the name that papers give them: ours in `data_pipelines.benchmarks`, images
# and captions. mteb's MSCOCO is another set, with 24,809 captions and other scores.
CAPTION_SETS = {
    "Flickr30K": ("flickr30k", 1000, 5000),
    "COCO": ("coco_karpathy", 5000, 25000),
    "ShareGPT4V-1K": ("sharegpt4v_1k", 1000, 1000),
    "Urban1K": ("urban1k", 1000, 1000),
}
# Rows of SugarCrepe's subsets.
SUGARCREPE_ROWS = {
    "add_att": 692,
    "add_obj": 2062,
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}


@dataclasses.dataclass(frozen=True)
class PublishedTable:
    """A table of a paper.

    Attributes:
      paper, table, arxiv: the source.
      benchmark: "MMEB" (its 36 datasets), "captions" (R@1 as CLIP counts it, of Karpathy's test
        splits and sets of long captions), or "SugarCrepe".
      averaging: how its overall score was made, one of `AVERAGING`.
      columns: names of the scores.
      rows: scores by model, in percent.
      notes: what a reader must know, by model, or "*" for all of them.
    """

    paper: str
    table: str
    arxiv: str
    benchmark: str
    averaging: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]
    notes: Mapping[str, str]

    @property
    def source(self) -> str:
        return f"{self.paper}, {self.table}, arXiv:{self.arxiv}"


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """A model's scores from all tables of the benchmarks asked for.

    Attributes:
      name: of the model.
      scores: percent by (benchmark, column).
      derived: those that no table prints, but that follow from what it prints.
      sources: of the tables, with their rule of averaging and notes: which of the scores are of it.
    """

    name: str
    scores: Mapping[tuple[str, str], float]
    derived: frozenset[tuple[str, str]]
    sources: Mapping[str, frozenset[tuple[str, str]]]


@functools.cache
def tables() -> tuple[PublishedTable, ...]:
    """All tables of the data file."""
    return tuple(
        PublishedTable(
            **{
                **table,
                "columns": tuple(table["columns"]),
                "rows": {model: tuple(row) for model, row in table["rows"].items()},
            }
        )
        for table in json.loads(FILE.read_text())["tables"]
    )


def names() -> list[str]:
    """All models, in the order of the data file."""
    return list(dict.fromkeys(model for table in tables() for model in table.rows))


def choose(patterns: Sequence[str]) -> list[str]:
    """Names that match patterns such as "UniME*", whatever their case; "all" is every one.

    Raises:
      ValueError: a pattern that matches nothing.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        lowered = "*" if pattern == "all" else pattern.lower()
        matching = [name for name in names() if fnmatch.fnmatchcase(name.lower(), lowered)]
        if not matching:
            raise ValueError(
                f"no published row is called {pattern!r}; there are {', '.join(names())}"
            )
        chosen |= dict.fromkeys(matching)
    return list(chosen)


def read(models: Sequence[str]) -> list[PublishedModel]:
    """Scores of the models, by their names.

    A mean over MMEB's 36 datasets that a table lacks, as it has the mean of the four meta tasks in
    its place, is derived from the means of these, whose numbers of datasets differ.
    """
    found = []
    for model in models:
        values: dict[tuple[str, str], float] = {}
        derived: set[tuple[str, str]] = set()
        sources: dict[str, frozenset[tuple[str, str]]] = {}
        for table in tables():
            if model not in table.rows:
                continue
            row = dict(zip(table.columns, table.rows[model], strict=True))
            own = {(table.benchmark, column): value for column, value in row.items()}
            values |= own
            if table.averaging == "mean of 4 metas":
                values[MMEB, "All"] = _mean_of_datasets(row)
                derived.add((MMEB, "All"))
            rule = "" if table.averaging == "none" else f"; overall: {table.averaging}"
            notes = "".join(f"; {table.notes[key]}" for key in ("*", model) if key in table.notes)
            sources[table.source + rule + notes] = frozenset(own)
        found.append(PublishedModel(model, values, frozenset(derived), sources))
    return found


def _mean_of_datasets(row: Mapping[str, float]) -> float:
    counts = [
        sum(meta == group for group, _ in scores_lib.MMEB_V1.values()) for meta in scores_lib.METAS
    ]
    means = [row[meta] for meta in scores_lib.METAS]
    return sum(n * mean for n, mean in zip(counts, means, strict=True)) / sum(counts)


def not_mmeb(
    datasets: Sequence[str], config: Mapping[str, Any], row_counts: Mapping[str, int]
) -> str:
    """Why scores are not those of MMEB's 36 datasets; "" if they are.

    Args:
      datasets: names of the datasets that have a score.
      config: of the run; {}: not known.
      row_counts: rows by dataset, of those that have results on disk.
    """
    evaluation = config.get("evaluation") or {}
    if "mini_mmeb" in pathlib.PurePath(str(evaluation.get("mmeb") or "")).parts:
        return "it was evaluated on MiniMMEB, which is generated"
    if foreign := sorted(set(datasets) - set(scores_lib.MMEB_V1)):
        return f"{_some(foreign)} {'is' if len(foreign) == 1 else 'are'} not of MMEB"
    if missing := [name for name in scores_lib.MMEB_V1 if name not in datasets]:
        return f"it has no {_some(missing)} of MMEB"
    limit = int(evaluation.get("limit") or 0)
    if 0 < limit < MMEB_ROWS:
        return f"it has only the first {limit} rows of each dataset (evaluation.limit)"
    for name, count in row_counts.items():
        if name in scores_lib.MMEB_V1 and count != MMEB_ROWS:
            return f"its {name} has {count} rows, MMEB's has {MMEB_ROWS:,}"
    return ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
