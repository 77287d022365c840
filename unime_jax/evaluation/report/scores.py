"""The report's part on scores: headline numbers, bars with intervals, and datasets that fell."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.benchmarks import mmeb_v2_video
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.report import intervals

SIDES = ("before", "after")
BothScores = Mapping[str, scores_lib.Scores]  # by side; either may be absent


def score_tiles(
    scores: BothScores,
    *,
    benchmark: str,
    rows: int,
    start: str,
    composition_sets: Collection[str] = (),
) -> Iterator[dict[str, str]]:
    """Headline numbers: name, value and, where there are two, the value before.

    Args:
      rows: of all datasets; 0: unknown.
      start: says of what model "before" is, in brackets.
      composition_sets: scores of composition that no mean is taken of, as each set has its rules.
    """
    datasets = max(len(side) for side in sides(scores, "datasets"))
    subsets = [
        {name: percent for name, percent in side.items() if name not in composition_sets}
        for side in sides(scores, "composition")
    ]
    on = f", {rows:,} rows" if rows else ""
    first, last = ((scores.get(side) or {}).get("All") for side in SIDES)
    absent = max(len((scores.get(side) or {}).get("missing", ())) for side in SIDES)
    of = f" of {datasets + absent}" if absent else ""
    name = f"hit@1, mean of {datasets}{of} datasets{on} ({benchmark})"
    yield from _tile(name, first, last, "{:.1f} %", start)
    first, last = (sum(side.values()) / len(side) if side else None for side in subsets)
    name = f"Caption chosen, mean of {max(map(len, subsets))} composition subsets"
    yield from _tile(name, first, last, "{:.1f} %", start)
    found = sides(scores, "retrieval")
    size = (found[1] or found[0]).get("candidates", 0)
    name = f"R@1, retrieval from {size:,} candidates"
    yield from _tile(name, found[0].get("R@1"), found[1].get("R@1"), "{:.1f} %", start)
    for name, key, form in (
        ("Held-out KL to the teacher, nats", "kl", "{:.3f}"),
        ("Top-10 neighbours as the teacher's", "overlap", "{:.1f} %"),
    ):
        first, last = (side.get(key) for side in sides(scores, "distillation"))
        yield from _tile(name, first, last, form, start)


def _tile(
    name: str, first: float | None, last: float | None, form: str, start: str
) -> Iterator[dict[str, str]]:
    shown = [form.format(v) for v in (first, last) if v is not None]
    if shown:
        before = f"from {shown[0]}{start}" if shown[1:] else ""
        yield {"name": name, "value": shown[-1], "before": before}


def start_note(config: Mapping[str, Any]) -> str:
    """The model of "before" in brackets, where a reader might take it for a trained one."""
    random = config.get("init") == "random" and not config.get("init_from")
    return " (random weights)" if random else ""


def benchmark(config: Mapping[str, Any], table: scores_lib.Table) -> str:
    """Name of the benchmark: MMEB if every dataset is one of its own, else the config's folder."""
    if table and all(scores_lib.MMEB_V1.get(name) == group for name, group in table.items()):
        return "MMEB" if len(table) == len(scores_lib.MMEB_V1) else "part of MMEB"
    return str((config.get("evaluation") or {}).get("mmeb") or "own datasets")


def row_count(table: scores_lib.Table, results: Mapping[str, DatasetResult]) -> int:
    """Rows of all datasets of the table."""
    return sum(len(result.ids) for name, result in results.items() if name in table)


def _hits(result: DatasetResult) -> tuple[int, int]:
    """Hits and rows."""
    return int(np.sum(result.rank == 0)), len(result.ids)


def column_intervals(
    table: scores_lib.Table, results: Mapping[str, DatasetResult]
) -> dict[str, float | None]:
    """Half the 95 % interval of each column of the scores."""
    counts = {name: _hits(results[name]) for name in table if name in results}
    return {
        column: intervals.of_mean(
            [count for name, count in counts.items() if column == "All" or column in table[name]]
        )
        for column in scores_lib.COLUMNS
    }


def fallen(
    scores: BothScores,
    table: scores_lib.Table,
    after: Mapping[str, DatasetResult],
) -> list[dict[str, Any]]:
    """Datasets with a lower score than before, and whether that is more than rows explain."""
    first, last = sides(scores, "datasets")
    fallen = []
    for name, (_, split) in table.items():
        if name in first and name in last and last[name] < first[name]:
            high = intervals.wilson(*_hits(after[name]))[1] if name in after else 100.0
            change = {"name": name, "split": split, "before": first[name], "after": last[name]}
            fallen.append(change | {"certain": first[name] > high})
    return fallen


def dataset_bars(
    scores: BothScores,
    table: scores_lib.Table,
    results: Mapping[str, DatasetResult],
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Per meta task, each dataset's percent before and after, with the level of chance."""
    return _bars(sides(scores, "datasets"), scores_lib.METAS, table, results)


def video_bars(
    scores: BothScores, results: Mapping[str, DatasetResult]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """As `dataset_bars`, of MMEB-V2's video sets."""
    table = {name: (meta, "") for name, meta in mmeb_v2_video.SETS.items()}
    return _bars(sides(scores, mmeb_v2_video.GROUP), mmeb_v2_video.METAS, table, results)


def _bars(
    percent: Sequence[Mapping[str, float]],
    metas: Sequence[str],
    table: scores_lib.Table,
    results: Mapping[str, DatasetResult],
) -> list[tuple[str, list[dict[str, Any]]]]:
    """`percent`: by dataset, before and after."""
    first, last = percent
    groups = []
    for meta in metas:
        bars = []
        for name, (own, split) in table.items():
            if own != meta or (name not in first and name not in last):
                continue
            result = results.get(name)
            bars.append(
                {
                    "name": name,
                    "split": split,
                    "before": first.get(name),
                    "after": last.get(name),
                    "chance": float(np.mean(100 / result.candidates)) if result else None,
                    "tied": int(result.tied.sum()) if result else 0,
                    "interval": intervals.wilson(*_hits(result)) if result else None,
                    "rows": len(result.ids) if result else None,
                }
            )
        if bars:
            groups.append((meta, bars))
    return groups


def composition_bars(
    scores: BothScores, rows: Mapping[str, int], chance: Mapping[str, float]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """By set, "" for subsets of none, each score before and after, with the level of chance.

    Args:
      rows: that a score is a share of; those not named have no interval.
      chance: percent; 50 for those not named.
    """
    first, last = sides(scores, "composition")
    groups = []
    for name, members in scores_lib.composition_groups(dict.fromkeys([*first, *last])).items():
        bars: list[dict[str, Any]] = []
        for member in members:
            percent, count = last.get(member, first.get(member, 0.0)), rows.get(member)
            interval = intervals.wilson(round(percent * count / 100), count) if count else None
            bars.append(
                {
                    "name": member.removeprefix(f"{name}/"),
                    "split": "",
                    "before": first.get(member),
                    "after": last.get(member),
                    "chance": chance.get(member, 50),
                    "tied": 0,
                    "interval": interval,
                    "rows": count,
                }
            )
        groups.append((name, bars))
    return groups


def clustering_bars(scores: BothScores) -> list[dict[str, Any]]:
    """V-measure of each clustering set before and after, in percent."""
    first, last = sides(scores, "clustering")
    none = {"split": "", "chance": None, "tied": 0, "interval": None, "rows": None}
    return [
        {"name": name, "before": first.get(name), "after": last.get(name), **none}
        for name in dict.fromkeys([*first, *last])
    ]


def retrieval_tables(scores: BothScores) -> list[dict[str, Any]]:
    """Scores of retrieval by name, before and after: of all sets, then of each of several."""
    first, last = (scores_lib.retrieval_sets(scores.get(side) or {}) for side in SIDES)
    tables = []
    for name, (a, b) in {
        "": sides(scores, "retrieval"),
        **{name: (first.get(name), last.get(name)) for name in {**first, **last}},
    }.items():
        if of := b or a:
            tables.append(
                {
                    "name": name,
                    "queries": of["queries"],
                    "candidates": of["candidates"],
                    "before": a,
                    "after": b,
                    "intervals": of.get("intervals", {}),
                }
            )
    return tables


def captions_tables(scores: BothScores) -> list[dict[str, Any]]:
    """Recalls of each set of captions, before and after, by `scores.recall_columns`."""
    first, last = ((scores.get(side) or {}).get("captions") or {} for side in SIDES)
    tables = []
    for name in dict.fromkeys([*first, *last]):
        of = last.get(name) or first[name]
        tables.append(
            {
                "name": name,
                "count": of.get("videos", of.get("images")),
                "counted": "videos" if "videos" in of else "images",
                "columns": scores_lib.recall_columns(of),
                "captions": of["captions"],
                "before": scores_lib.flat_recalls(first.get(name)),
                "after": scores_lib.flat_recalls(last.get(name)),
                "intervals": scores_lib.flat_recalls(of, "intervals"),
            }
        )
    return tables


def not_run(scores: BothScores) -> dict[str, str]:
    """Why benchmark sets of an evaluation were not run, by their names."""
    return dict((scores.get("after") or {}).get("not_run") or {})


def sides(scores: BothScores, key: str) -> list[dict[str, float]]:
    """The group `key` of the scores before and after, {} where there is none."""
    return [(scores.get(side) or {}).get(key) or {} for side in SIDES]
