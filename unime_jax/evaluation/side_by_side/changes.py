"""Changes of scores from a baseline, with intervals, where the rows are the same."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.benchmarks import mmeb_v2_video, visdoc
from unime_jax.evaluation.side_by_side import columns as columns_lib
from unime_jax.evaluation.side_by_side import rows
from unime_jax.evaluation.side_by_side.columns import CHOSEN, COMPOSITION, DATASETS, Column
from unime_jax.evaluation.side_by_side.runs import Group, Run
from unime_jax.evaluation.side_by_side.suites import OF_DATASETS

MACRO = "_macro"  # ends the names of means over subsets


def values_of(run: Run, chosen: Mapping[str, Sequence[str]]) -> dict[Column, float]:
    """All scores of a run, with those of the chosen columns.

    Raises:
      ValueError: a dataset or average of a chosen column that the run has not.
    """
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


def changes_from(
    group: Group,
    base: Group,
    *,
    chosen: Mapping[str, Sequence[str]],
    same_suite: bool,
    table: scores_lib.Table,
) -> tuple[dict[Column, tuple[float, tuple[float, float] | None]], list[str]]:
    """Change of each column from the baseline with its interval, and remarks on rows that differ.

    Averages over different datasets have no change, nor do scores of different rows. Where rows of
    any dataset differ, only those have a change whose rows are known to be the same.

    Args:
      chosen: datasets or averages by name of a column that is their mean.
      same_suite: whether both have the same datasets of MMEB, or own ones in its columns.
      table: meta task and split of each dataset.
    """
    mine, theirs = ([values_of(run, chosen) for run in g.runs] for g in (group, base))
    columns = [c for c in mine[0] if all(c in values for values in (*mine, *theirs))]
    draws, unlike = _draws(group, base)
    other_sets = _other_sets(group, base)
    of_averages = _members(mine[0], chosen, table)
    changes: dict[Column, tuple[float, tuple[float, float] | None]] = {}
    for column in columns:
        of_datasets = column[0] in (DATASETS, CHOSEN, *OF_DATASETS)
        if columns_lib.is_count(column) or (of_datasets and not same_suite):
            continue
        if column[0] in other_sets and column not in draws and not _is_of_one_set(column):
            continue
        drawn = _mean_draws(column, of_averages, draws)
        if unlike and drawn is None:
            continue
        change = float(
            np.mean([values[column] for values in mine])
            - np.mean([values[column] for values in theirs])
        )
        changes[column] = change, rows.interval(drawn) if drawn is not None else None
    remarks = [
        f"{group.name} has other sets of {kind} than {base.name}: means over them have no change"
        for kind in other_sets
    ]
    if unlike:
        names = ", ".join(unlike[:3]) + (f" and {len(unlike) - 3} more" if unlike[3:] else "")
        remarks.append(
            f"{group.name} was evaluated on other rows of {names} than {base.name}, so that there"
            " is no change of these"
        )
    return changes, remarks


def _other_sets(group: Group, base: Group) -> list[str]:
    """Kinds of scores whose means are over other sets, or over sets of other sizes."""
    kinds = []
    for kind in ("composition", "retrieval"):
        mine, theirs = (
            {c: v for c, v in run.values.items() if c[0] == kind}
            for run in (group.first, base.first)
        )
        names = [{n for k, n in run.by_row if k == kind} for run in (group.first, base.first)]
        sizes = [{c: v for c, v in s.items() if columns_lib.is_count(c)} for s in (mine, theirs)]
        columns = [{c for c in s if not columns_lib.is_count(c)} for s in (mine, theirs)]
        if mine and theirs:
            unlike = columns[0] != columns[1] or sizes[0] != sizes[1]
            if unlike or (all(names) and names[0] != names[1]):
                kinds.append(kind)
    return kinds


def _is_of_one_set(column: Column) -> bool:
    """Whether a score of composition or retrieval is of a single set, by its name."""
    return column != COMPOSITION and (column[0] != "retrieval" or DATASETS in column)


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
    members[visdoc.NAME,] = [("retrieval", DATASETS, name, visdoc.METRIC) for name in visdoc.SETS]
    for name in mmeb_v2_video.SETS:  # what has no rows of its own is a column of another kind
        kinds = ("captions", name, "t2v", "R@1"), ("retrieval", DATASETS, name, "R@1")
        members[mmeb_v2_video.GROUP, name] = [column for column in kinds if column in values]
    for mean in mmeb_v2_video.MEANS:
        members[mean,] = [(mmeb_v2_video.GROUP, name) for name in mmeb_v2_video.members(mean)]
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
