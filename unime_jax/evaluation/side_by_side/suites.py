"""Suites of datasets: averages of different ones never stand in one column."""

from collections.abc import Sequence

from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.benchmarks.published import MMEB
from unime_jax.evaluation.side_by_side.columns import AVERAGES, DATASETS, Column
from unime_jax.evaluation.side_by_side.runs import Group, not_mmeb

OF_DATASETS = (*scores_lib.COLUMNS, "meta_mean")  # averages over MMEB's datasets, or own ones
Suite = tuple[frozenset[str], str]  # names of datasets, and why they are not MMEB's 36


def suite_of(group: Group) -> Suite:
    """The suite of a group's runs; ValueError where they have different ones."""
    suites = {(run.datasets, not_mmeb(run) if run.datasets else "") for run in group.runs}
    if len(suites) > 1:
        names = sorted(frozenset.symmetric_difference(*[s for s, _ in list(suites)[:2]]))
        why = f"only some have {', '.join(names[:3])}" if names else "their rows are not as many"
        raise ValueError(f"{group.name!r}: its runs were evaluated on different data: {why}")
    return suites.pop()


def titles_of(suites: Sequence[Suite]) -> dict[Suite, str]:
    """Names of the suites; "" where there is only one."""
    with_datasets = [suite for suite in suites if suite[0]]
    titles = dict.fromkeys(suites, "")
    if len(with_datasets) > 1:
        for number, (names, why) in enumerate(with_datasets, 1):
            title = f"{len(names)} datasets, {min(names)} ..." if why else MMEB
            taken = title in titles.values()
            titles[names, why] = f"{title} ({number})" if taken else title
    return titles


def shown_column(column: Column, title: str) -> Column:
    """A column of the tables: it names the datasets where there are several suites."""
    if not title:
        return column
    if len(column) == 1 and column[0] in OF_DATASETS:
        return (f"{AVERAGES} of {title}", *column)
    return (f"{DATASETS} of {title}", *column[1:]) if column[0] == DATASETS else column
