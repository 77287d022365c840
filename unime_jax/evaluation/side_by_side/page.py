"""Several runs side by side as one HTML file, which needs no network and no script."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from unime_jax import files
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.encoding.item_table import Images
from unime_jax.evaluation.report import figures, gallery
from unime_jax.evaluation.report import page as report
from unime_jax.evaluation.side_by_side import columns as columns_lib
from unime_jax.evaluation.side_by_side import examples, formats
from unime_jax.evaluation.side_by_side.columns import AVERAGES, Column
from unime_jax.evaluation.side_by_side.lines import Cell, Comparison, Line
from unime_jax.evaluation.side_by_side.runs import Group

HEADINGS = {
    "datasets": "Datasets",
    "retrieval": "Retrieval",
    "captions": "Caption retrieval",
    "composition": "Composition",
    "distillation": "Distillation",
}
FACTS = (
    "backbone",
    "library",
    "dtype",
    "init",
    "steps",
    "seed",
)  # of config.json, in the table of lines


def write_page(
    path: files.Path,
    comparison: Comparison,
    groups: Sequence[Group],
    *,
    tables: Mapping[str, scores_lib.Table],
    images: Images,
    title: str,
) -> None:
    """Writes the page.

    Figures and examples are those of the first run of each group.

    Args:
      tables: meta task and split of each dataset, by name of the group.
      images: encoded bytes by path, of all runs; b"" of one that is not found.
    """
    first = {group.name: group.first for group in groups}
    rankings = {name: run.rankings for name, run in first.items() if run.rankings}
    table = {name: ("", "") for of_run in rankings.values() for name in of_run}
    table |= {name: place for of_group in tables.values() for name, place in of_group.items()}
    with figures.style():
        histograms = figures.histograms(rankings)
        radars = _radars(comparison)
    hard, hard_left_out = gallery.hard_negatives(table, rankings, images)
    results: dict[str, dict[str, Any]] = {
        name: {**run.rankings, **run.sets} for name, run in first.items()
    }
    failures, left_out = examples.examples(results, table, images)
    page = (
        report.environment()
        .get_template("compare.html.j2")
        .render(
            title=title,
            written=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M UTC}",
            lines=[_about(group) for group in groups],
            tables=[_table(comparison, name, c) for name, c in comparison.groups.items()],
            baseline=comparison.baseline,
            radars=radars,
            histograms=histograms,
            heat=figures.heat(table, rankings),
            hard=hard,
            hard_left_out=hard_left_out,
            failures=failures,
            left_out=left_out,
            sources=formats.source_numbers(comparison),
            explanations=formats.explanations(comparison),
            several=any(len(group.runs) > 1 for group in groups),
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, page)


def _about(group: Group) -> dict[str, Any]:
    """A line's runs: where they are, and what their config says of the model."""
    config = group.first.config
    first = group.first
    rows = sum(len(result.ids) for n, result in first.rankings.items() if n in first.datasets)
    return {
        "name": group.name,
        "facts": {key: str(config[key]) for key in FACTS if config.get(key) not in (None, "")},
        "folders": [str(run.workdir) for run in group.runs],
        "datasets": len(group.first.datasets),
        "rows": rows,
    }


def _radars(comparison: Comparison) -> list[dict[str, Any]]:
    """A radar for each group of averages: own lines, then published ones, as far as colours go."""
    radars = []
    for name, columns in comparison.groups.items():
        metas = {c[-1]: c for c in columns if c[-1] in scores_lib.METAS}
        if not (name == AVERAGES or name.startswith(f"{AVERAGES} of ")):
            continue
        series = {
            line.name: {meta: line.cells[column].mean for meta, column in metas.items()}
            for line in comparison.lines
            if all(column in line.cells for column in metas.values())
        }
        if drawn := figures.radar(series):
            radars.append(drawn | {"title": name, "left_out": len(series) - len(drawn["lines"])})
    return radars


def _table(comparison: Comparison, name: str, columns: Sequence[Column]) -> dict[str, Any]:
    """A table of the page; `wide`: scores stand below each other, lines beside each other."""
    lines = comparison.lines_of(columns)
    numbers = formats.source_numbers(comparison)
    cells = [[_cell(comparison, line, column) for column in columns] for line in lines]
    return {
        "title": HEADINGS.get(name, name[:1].upper() + name[1:]),
        "lead": formats.lead(name),
        "wide": formats.is_wide(columns),
        "columns": [columns_lib.label(column) for column in columns],
        "lines": [
            {
                "name": line.name,
                "runs": line.runs,
                "sources": [numbers[source] for source in line.sources],
                "cells": row,
            }
            for line, row in zip(lines, cells, strict=True)
        ],
    }


def _cell(comparison: Comparison, line: Line, column: Column) -> dict[str, Any] | None:
    cell = line.cells.get(column)
    if cell is None:
        return None
    digits = comparison.digits(column)
    interval = cell.interval
    return {
        "mean": formats.number(cell, column, digits).partition(" ± ")[0].rstrip("*"),
        "derived": cell.derived,
        "spread": None if cell.spread is None else f"{cell.spread:.{digits}f}",
        "change": None if cell.change is None else _signed(cell.change, digits),
        "interval": _range(interval, digits) if interval and any(interval) else None,
        "verdict": _verdict(cell, column),
        "best": _is_best(comparison, cell, column),
    }


def _signed(value: float, digits: int) -> str:
    return formats.signed(value, digits).replace("-", "−")  # as wide as the plus sign


def _range(interval: tuple[float, float], digits: int) -> str:
    return " to ".join(_signed(value, digits).removeprefix("+") for value in interval)


def _verdict(cell: Cell, column: Column) -> str:
    """The class of a change: "up" or "down" where its interval leaves no doubt, else "unsure"."""
    if not cell.change or (cell.interval and cell.interval[0] <= 0 <= cell.interval[1]):
        return "unsure"
    return "up" if (cell.change > 0) != columns_lib.less_is_better(column) else "down"


def _is_best(comparison: Comparison, cell: Cell, column: Column) -> bool:
    means = [line.cells[column].mean for line in comparison.lines if column in line.cells]
    best = min(means) if columns_lib.less_is_better(column) else max(means)
    return len(means) > 1 and not columns_lib.is_count(column) and cell.mean == best


def images_of_all(readers: Mapping[str, Images]) -> Images:
    """The first bytes that any run's images have at a path; b"" where none has."""

    def read(path: str) -> bytes:
        return next((data for images in readers.values() if (data := images(path))), b"")

    return read
