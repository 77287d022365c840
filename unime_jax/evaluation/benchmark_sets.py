"""Prepared benchmark sets as tasks: one that cannot be used is left out alone, with the reason."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from absl import logging

from unime_jax import files
from unime_jax.evaluation import scores, tasks
from unime_jax.evaluation.prepared_set import FILE, SPLIT, PreparedSet, TaskSettings, open_set
from unime_jax.evaluation.retrieval_files import open_sets
from unime_jax.evaluation.tasks import captions, composition, mmeb, retrieval


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """Tasks of prepared sets, and what is not run.

    `sets` have the images of the tasks; `table` has the meta task and split of MMEB's datasets;
    `not_run` says why, by name of the set.
    """

    tasks: tuple[tasks.Task, ...]
    sets: tuple[PreparedSet, ...]
    table: scores.Table
    not_run: Mapping[str, str]


TRAINED_ON = "pairs"  # the kind of prepared sets that no model is evaluated on
NONE = Benchmarks((), (), {}, {})


def open_benchmarks(
    folder: files.Path,
    names: Sequence[str],
    settings: TaskSettings,
    taken: Iterable[tuple[tasks.Kind, str]] = (),
) -> Benchmarks:
    """Tasks of the sets in a folder, of which at most the first row is read.

    A set that is missing, damaged, or of an unknown kind is in `not_run`, and is no error.

    Args:
      names: of sets; (): all that are there, but for those to be trained on.
      taken: kinds and names of other tasks of the same evaluation.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    check_folder(folder)
    opened: dict[str, list[tasks.Task]] = {}
    sets: list[PreparedSet] = []
    not_run: dict[str, str] = {}
    known = set(taken)
    for name in names or _names(folder):
        try:
            prepared = open_set(folder / name)
            if prepared.kind == TRAINED_ON and not names:
                continue
            own = _tasks_of(prepared, settings)
            if twice := [str(task) for task in own if (task.kind, task.name) in known]:
                raise ValueError(f"the evaluation has {', '.join(twice)} from other data, too")
        except (OSError, ValueError) as error:
            logging.warning("benchmark set %r is not run: %s", name, error)
            not_run[name] = str(error)
            continue
        known |= {(task.kind, task.name) for task in own}
        opened[name] = own
        sets.append(prepared)
    several = tuple(task for own in opened.values() for task in own)
    table = {task.name: scores.MMEB_V1[task.name] for task in several if task.kind == "mmeb"}
    return Benchmarks(several, tuple(sets), table, not_run)


def check_folder(folder: files.Path) -> None:
    """Raises FileNotFoundError if there is no folder of prepared sets."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: prepare benchmark sets by "
            "python -m data_pipelines.benchmarks"
        )


def said(not_run: Mapping[str, str]) -> str:
    """A line for each set that is not run, with the reason."""
    return "\n".join(f"- {name}: {reason}" for name, reason in not_run.items())


def _names(folder: files.Path) -> list[str]:
    """Folders of sets, whole ones and those whose preparation has begun to write rows."""
    return sorted(
        inner.name
        for inner in folder.iterdir()
        if not inner.name.startswith(".") and ((inner / FILE).exists() or (inner / "rows").is_dir())
    )


def _tasks_of(prepared: PreparedSet, settings: TaskSettings) -> list[tasks.Task]:
    """A task for each subset, but for retrieval, whose files are one set.

    Raises:
      FileNotFoundError: a part of the data is missing.
      ValueError: the kind is not known, or the rows are not of it.
    """
    if prepared.kind == "retrieval":
        return [_retrieval_task(prepared, settings)]
    if prepared.kind not in TASK_OF:
        raise ValueError(
            f"{prepared.folder / FILE} is of the kind {prepared.kind!r}; known are "
            f"{', '.join(sorted([*TASK_OF, 'retrieval']))}"
        )
    make = TASK_OF[prepared.kind]
    return [make(prepared, subset, settings) for subset in prepared.subsets]


def _mmeb_task(prepared: PreparedSet, subset: str, settings: TaskSettings) -> tasks.Task:
    """A dataset of MMEB, under its own name, which averages go by."""
    name = subset.removesuffix(SPLIT)
    if name not in scores.MMEB_V1:
        raise ValueError(f"{prepared.rows}: no meta task is known for MMEB's dataset {name!r}")
    return mmeb.Task(name, prepared.placed(subset, mmeb.IMAGE_COLUMNS), settings.limit)


def _retrieval_task(prepared: PreparedSet, settings: TaskSettings) -> tasks.Task:
    """A judged corpus in BEIR's layout, or pairs of one source."""
    rows = prepared.rows
    sets = open_sets(rows if rows.is_dir() else rows.parent, {})
    if len(sets) != 1:
        raise ValueError(f"{rows} has {len(sets)} retrieval sets; a benchmark set is one")
    data = dataclasses.replace(sets[0], name=prepared.name, folder=prepared.images)  # type: ignore[type-var]
    return retrieval.Task(data, settings.limit)


# By kind: a task of a subset, by its name in `PreparedSet.subsets`.
TASK_OF: Mapping[str, Callable[[PreparedSet, str, TaskSettings], tasks.Task]] = {
    "mmeb": _mmeb_task,
    "composition": composition.task_of,
    "captions": captions.task_of,
}
