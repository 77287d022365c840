"""The comparison of several groups of runs, and of papers: what stands where."""

from collections.abc import Mapping, Sequence

import numpy as np

from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.benchmarks.published import PublishedModel
from unime_jax.evaluation.side_by_side import columns as columns_lib
from unime_jax.evaluation.side_by_side.changes import changes_from, values_of
from unime_jax.evaluation.side_by_side.columns import AVERAGES, CHOSEN, DATASETS, Column
from unime_jax.evaluation.side_by_side.lines import Cell, Comparison, Line
from unime_jax.evaluation.side_by_side.published_lines import published_lines
from unime_jax.evaluation.side_by_side.runs import Group
from unime_jax.evaluation.side_by_side.suites import shown_column, suite_of, titles_of


def compare(
    groups: Sequence[Group],
    *,
    chosen: Mapping[str, Sequence[str]],
    baseline: str,
    published: Sequence[PublishedModel],
    tables: Mapping[str, scores_lib.Table],
) -> Comparison:
    """Scores of all groups, then of papers, under common columns.

    Groups on other datasets, or on fewer rows of them, have tables of their own: averages of
    different datasets, or of a part of the rows, never stand in one column.

    Args:
      chosen: datasets or averages by name of a column that is their mean.
      baseline: name of a group that the changes are from; "": no changes.
      published: what does not stand beside any of the groups is left out, and named.
      tables: meta task and split of each dataset, by name of the group.

    Raises:
      ValueError: a group of runs on different datasets, a chosen column whose datasets a run has
        not, or no such baseline.
    """
    if baseline and baseline not in [group.name for group in groups]:
        raise ValueError(
            f"no line is called {baseline!r} to be the baseline; there are "
            f"{', '.join(group.name for group in groups)}"
        )
    remarks = [remark for group in groups for run in group.runs for remark in run.remarks]
    remarks += _left_out(groups) + _instructions(groups)
    suites = {group.name: suite_of(group) for group in groups}
    titles = titles_of(list(dict.fromkeys(suites.values())))
    base = next((group for group in groups if group.name == baseline), None)
    lines = []
    for group in groups:
        values = [values_of(run, chosen) for run in group.runs]
        common = [c for c in values[0] if all(c in other for other in values)]
        if base and group is not base:
            same_suite = suites[group.name] == suites[baseline]
            changes, unlike = changes_from(
                group, base, chosen=chosen, same_suite=same_suite, table=tables[group.name]
            )
            remarks += unlike
        else:
            changes = {}
        cells = {}
        for column in common:
            several = np.array([of_run[column] for of_run in values])
            spread = float(several.std(ddof=1)) if len(several) > 1 else None
            change = changes.get(column, (None, None))
            shown = shown_column(column, titles[suites[group.name]])
            cells[shown] = Cell(float(several.mean()), spread, *change)
        lines.append(Line(group.name, len(group.runs), cells))
    printed, refused = published_lines(published, groups, suites, titles, lines)
    remarks += refused
    lines += printed
    every = [column for line in lines for column in line.cells]
    return Comparison(lines, _ordered(every, list(titles.values())), baseline, remarks)


def _ordered(every: Sequence[Column], titles: Sequence[str]) -> dict[str, list[Column]]:
    groups = columns_lib.grouped(every)
    first = [f"{kind} of {title}" for title in titles for kind in (AVERAGES, DATASETS)]
    names = [AVERAGES, CHOSEN, DATASETS, *first]
    order = [*(n for n in names if n in groups), *(n for n in groups if n not in names)]
    return {name: groups[name] for name in order}


def _left_out(groups: Sequence[Group]) -> list[str]:
    """What evaluations say they have not run, with the lines that say so."""
    lines: dict[tuple[str, str], list[str]] = {}  # by name and reason of what was not run
    for group in groups:
        for missing in group.first.not_run().items():
            lines.setdefault(missing, []).append(group.name)
    names: dict[tuple[str, str], list[str]] = {}  # by lines and reason
    for (name, why), of_lines in lines.items():
        names.setdefault((", ".join(of_lines), why), []).append(name)
    return [
        f"{of_lines}: not run: {', '.join(several)}" + (f" ({why})" if why else "")
        for (of_lines, why), several in names.items()
    ]


def _instructions(groups: Sequence[Group]) -> list[str]:
    """A remark on rows in different words, where evaluations say so."""
    names: dict[str, list[str]] = {}
    for group in groups:
        if said := group.first.scores.get("instructions"):
            names.setdefault(str(said), []).append(group.name)
    if len(names) < 2:
        return []
    listed = "; ".join(f"{', '.join(lines)}: {said}" for said, lines in names.items())
    return [f"The lines differ in their instructions: {listed}"]
