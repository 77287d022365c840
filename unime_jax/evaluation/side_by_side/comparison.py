"""Lines of scores under common columns: means over runs, and changes from a baseline."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.published import (
    CAPTION_SETS,
    CAPTIONS,
    MMEB,
    SUGARCREPE,
    SUGARCREPE_ROWS,
    PublishedModel,
)
from unime_jax.evaluation.side_by_side import columns as columns_lib
from unime_jax.evaluation.side_by_side import rows
from unime_jax.evaluation.side_by_side.columns import (
    AVERAGES,
    CHOSEN,
    COMPOSITION,
    DATASETS,
    Column,
)
from unime_jax.evaluation.side_by_side.runs import Group, Run, not_mmeb

MACRO = "_macro"  # ends the names of means over subsets
OF_DATASETS = (*scores_lib.COLUMNS, "meta_mean")  # averages over MMEB's datasets, or own ones


@dataclasses.dataclass(frozen=True)
class Cell:
    """A score of a line.

    Attributes:
      spread: standard deviation over runs, None of one.
      change: from the baseline; None of the baseline itself, or where rows differ.
      interval: 95 % of the change, by a paired bootstrap over rows; None without results by row.
      derived: it is not printed in a paper, but follows from what is.
    """

    mean: float
    spread: float | None = None
    change: float | None = None
    interval: tuple[float, float] | None = None
    derived: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """A model's scores: of so many runs of one's own, or published (no runs, but sources)."""

    name: str
    runs: int
    cells: Mapping[Column, Cell]
    sources: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Lines, columns by the heading of their table, and what a reader has to know."""

    lines: Sequence[Line]
    groups: Mapping[str, Sequence[Column]]
    baseline: str  # name of a line; "": none
    remarks: Sequence[str]

    def cell(self, line: Line, column: Column) -> Cell | None:
        return line.cells.get(column)

    def lines_of(self, columns: Sequence[Column]) -> list[Line]:
        """Lines with a score in any of the columns."""
        return [line for line in self.lines if any(c in line.cells for c in columns)]

    def digits(self, column: Column) -> int:
        """Decimals of a column."""
        cells = (line.cells.get(column) for line in self.lines)
        return columns_lib.digits(column, [cell.mean for cell in cells if cell])


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
    suites = {group.name: _suite(group) for group in groups}
    titles = _titles(list(dict.fromkeys(suites.values())))
    base = next((group for group in groups if group.name == baseline), None)
    lines = []
    for group in groups:
        values = [_values(run, chosen) for run in group.runs]
        common = [c for c in values[0] if all(c in other for other in values)]
        if base and group is not base:
            same_suite = suites[group.name] == suites[baseline]
            changes, unlike = _changes(group, base, chosen, same_suite, tables[group.name])
            remarks += unlike
        else:
            changes = {}
        cells = {}
        for column in common:
            several = np.array([of_run[column] for of_run in values])
            spread = float(several.std(ddof=1)) if len(several) > 1 else None
            change = changes.get(column, (None, None))
            shown = _shown_column(column, titles[suites[group.name]])
            cells[shown] = Cell(float(several.mean()), spread, *change)
        lines.append(Line(group.name, len(group.runs), cells))
    printed, refused = _printed(published, groups, suites, titles, lines)
    remarks += refused
    lines += printed
    every = [column for line in lines for column in line.cells]
    return Comparison(lines, _ordered(every, list(titles.values())), baseline, remarks)


Suite = tuple[frozenset[str], str]  # names of datasets, and why they are not MMEB's 36


def _suite(group: Group) -> Suite:
    suites = {(run.datasets, not_mmeb(run) if run.datasets else "") for run in group.runs}
    if len(suites) > 1:
        names = sorted(frozenset.symmetric_difference(*[s for s, _ in list(suites)[:2]]))
        why = f"only some have {', '.join(names[:3])}" if names else "their rows are not as many"
        raise ValueError(f"{group.name!r}: its runs were evaluated on different data: {why}")
    return suites.pop()


def _titles(suites: Sequence[Suite]) -> dict[Suite, str]:
    """Names of the suites; "" where there is only one."""
    with_datasets = [suite for suite in suites if suite[0]]
    titles = dict.fromkeys(suites, "")
    if len(with_datasets) > 1:
        for number, (names, why) in enumerate(with_datasets, 1):
            title = f"{len(names)} datasets, {min(names)} ..." if why else MMEB
            taken = title in titles.values()
            titles[names, why] = f"{title} ({number})" if taken else title
    return titles


def _shown_column(column: Column, title: str) -> Column:
    """A column of the tables: it names the datasets where there are several suites."""
    if not title:
        return column
    if len(column) == 1 and column[0] in OF_DATASETS:
        return (f"{AVERAGES} of {title}", *column)
    return (f"{DATASETS} of {title}", *column[1:]) if column[0] == DATASETS else column


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


def _values(run: Run, chosen: Mapping[str, Sequence[str]]) -> dict[Column, float]:
    """All scores of a run, with those of the chosen columns."""
    values = dict(run.values)
    named = {name: values.get(member_column(name, values)) for name in _names_of(values)}
    unknown = [n for members in chosen.values() for n in members if named.get(n) is None]
    if unknown:
        raise ValueError(f"{run.workdir} has no {', '.join(unknown)}; it has {', '.join(named)}")
    for name, members in chosen.items():
        values[CHOSEN, name] = float(np.mean([named[member] for member in members]))
    return values


def _names_of(values: Mapping[Column, float]) -> list[str]:
    datasets = [column[1] for column in values if column[0] == DATASETS]
    return datasets + [column[0] for column in values if len(column) == 1]


def member_column(name: str, values: Mapping[Column, float]) -> Column:
    """The column that a name in a chosen column stands for: a dataset or an average."""
    return (DATASETS, name) if (DATASETS, name) in values else (name,)


def _changes(
    group: Group,
    base: Group,
    chosen: Mapping[str, Sequence[str]],
    same_suite: bool,
    table: scores_lib.Table,
) -> tuple[dict[Column, tuple[float, tuple[float, float] | None]], list[str]]:
    """Change of each column from the baseline with its interval, and remarks on rows that differ.

    Averages over different datasets have no change, nor do scores of different rows. Where rows of
    any dataset differ, only those have a change whose rows are known to be the same.
    """
    mine, theirs = ([_values(run, chosen) for run in g.runs] for g in (group, base))
    columns = [c for c in mine[0] if all(c in values for values in (*mine, *theirs))]
    draws, unlike = _draws(group, base)
    of_averages = _members(mine[0], chosen, table)
    changes: dict[Column, tuple[float, tuple[float, float] | None]] = {}
    for column in columns:
        of_datasets = column[0] in (DATASETS, CHOSEN, *OF_DATASETS)
        if columns_lib.is_count(column) or (of_datasets and not same_suite):
            continue
        drawn = _mean_draws(column, of_averages, draws)
        if unlike and drawn is None:
            continue
        change = float(
            np.mean([values[column] for values in mine])
            - np.mean([values[column] for values in theirs])
        )
        changes[column] = change, rows.interval(drawn) if drawn is not None else None
    if not unlike:
        return changes, []
    names = ", ".join(unlike[:3]) + (f" and {len(unlike) - 3} more" if unlike[3:] else "")
    return changes, [
        f"{group.name} was evaluated on other rows of {names} than {base.name}, so that there is no"
        " change of these"
    ]


def _draws(
    group: Group, base: Group
) -> tuple[dict[Column, Float64[np.ndarray, " draws"]], list[str]]:
    """Drawn changes of single datasets, and names of those whose rows differ."""
    draws: dict[Column, Float64[np.ndarray, " draws"]] = {}
    unlike: list[str] = []
    for number, unit in enumerate(sorted(base.first.by_row)):
        if not all(unit in run.by_row for run in (*group.runs, *base.runs)):
            continue
        mine, theirs = ([run.by_row[unit] for run in g.runs] for g in (group, base))
        if not all(theirs[0].same_rows(other) for other in (*mine, *theirs)):
            unlike.append(theirs[0].name)
            continue
        averaged = rows.mean_over_runs(mine), rows.mean_over_runs(theirs)
        draws |= rows.drawn_differences(*averaged, seed=number)
    return draws, unlike


def _members(
    values: Mapping[Column, float], chosen: Mapping[str, Sequence[str]], table: scores_lib.Table
) -> dict[Column, list[Column]]:
    """The columns that an average is the plain mean of, as far as they are known."""
    datasets = [column for column in values if column[0] == DATASETS]
    members: dict[Column, list[Column]] = {("All",): datasets}
    if all(column[1] in table for column in datasets):
        for group in (*scores_lib.METAS, *scores_lib.SPLITS):
            members[group,] = [column for column in datasets if group in table[column[1]]]
        members["meta_mean",] = [(meta,) for meta in scores_lib.METAS]
    subsets = [c for c in values if c[0] == "composition" and len(c) == 2]
    members[COMPOSITION] = [c for c in subsets if "/" not in c[1]]
    for column in subsets:
        if column[1].endswith(MACRO):
            members[column] = [c for c in subsets if _is_part(c[1], column[1])]
    for metric in scores_lib.RETRIEVAL[:-1]:
        sets = [c for c in values if c[:2] == ("retrieval", DATASETS) and c[-1] == metric]
        members["retrieval", metric] = sets
    for name, names in chosen.items():
        members[CHOSEN, name] = [member_column(member, values) for member in names]
    return members


def _is_part(name: str, macro: str) -> bool:
    """Whether a composition score is one that a mean over subsets is of: "set/kind_macro"."""
    start, _, kind = macro.removesuffix(MACRO).rpartition("/")
    part = name.removeprefix(f"{start}/")
    if part == name or part.endswith((MACRO, "_pooled")):
        return False
    return part.endswith(f"/{kind}") or (part.startswith(f"{kind}_") and "/" not in part)


def _mean_draws(
    column: Column,
    members: Mapping[Column, Sequence[Column]],
    draws: Mapping[Column, Float64[np.ndarray, " draws"]],
) -> Float64[np.ndarray, " draws"] | None:
    """Drawn changes of a column, by those of its members; None where any is not known."""
    if column in draws:
        return draws[column]
    several = [_mean_draws(member, members, draws) for member in members.get(column, ())]
    known = [drawn for drawn in several if drawn is not None]
    return np.mean(known, axis=0) if known and len(known) == len(several) else None


def _printed(
    models: Sequence[PublishedModel],
    groups: Sequence[Group],
    suites: Mapping[str, Suite],
    titles: Mapping[Suite, str],
    lines: Sequence[Line],
) -> tuple[list[Line], list[str]]:
    """Lines of papers, only in columns in which a run on the same benchmark has a score."""
    if not models:
        return [], []
    allowed: dict[tuple[str, str], Column] = {}
    refused: dict[str, list[str]] = {}  # names of lines by reason
    for group, line in zip(groups, lines, strict=True):
        own = dict(_comparable(group, suites[group.name], titles[suites[group.name]]))
        allowed |= {name: column for name, column in own.items() if column in line.cells}
        if why := suites[group.name][1]:
            refused.setdefault(why, []).append(group.name)
    printed, without = [], []
    for model in models:
        cells = {
            allowed[name]: Cell(value, derived=name in model.derived)
            for name, value in model.scores.items()
            if name in allowed
        }
        if cells:
            sources = tuple(s for s, of in model.sources.items() if of & allowed.keys())
            printed.append(Line(model.name, 0, cells, sources))
        else:
            without.append(model.name)
    remarks = [
        f"Published rows on MMEB do not stand beside {', '.join(names)}: {why}"
        for why, names in refused.items()
    ]
    if without:
        more = f" and {len(without) - 3} more" if without[3:] else ""
        remarks.append(
            f"No run is on the benchmarks of {', '.join(without[:3])}{more}, which are left out"
        )
    return printed, remarks


def _comparable(group: Group, suite: Suite, title: str) -> Iterator[tuple[tuple[str, str], Column]]:
    """Benchmark and column of a paper, and the column of the tables that it stands in."""
    datasets, why_not = suite
    if datasets and not why_not:
        for name in OF_DATASETS:
            yield (MMEB, name), _shown_column((name,), title)
        for name in datasets:
            yield (MMEB, name), _shown_column((DATASETS, name), title)
    values = group.first.values
    for printed, (name, *public) in CAPTION_SETS.items():
        if [values.get(("captions", name, key)) for key in ("images", "captions")] == public:
            for way in ("t2i", "i2t"):
                yield (CAPTIONS, f"{printed} {way}"), ("captions", name, way, "R@1")
    by_row = group.first.by_row
    own = {n: by_row.get(("composition", f"sugarcrepe/{n}"), ()) for n in SUGARCREPE_ROWS}
    if {name: len(scores) for name, scores in own.items()} == SUGARCREPE_ROWS:
        for kind in ("replace", "swap", "add"):
            yield (SUGARCREPE, kind), ("composition", f"sugarcrepe/{kind}{MACRO}")
