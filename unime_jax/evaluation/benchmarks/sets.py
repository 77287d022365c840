"""Prepared benchmark sets as tasks: one that cannot be used is left out alone, with the reason."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from absl import logging

from unime_jax import files
from unime_jax.evaluation import scores, tasks
from unime_jax.evaluation.benchmarks import mmeb_rows, mmeb_v2_video
from unime_jax.evaluation.benchmarks.prepared_set import (
    FILE,
    SPLIT,
    PreparedSet,
    TaskSettings,
    open_set,
)
from unime_jax.evaluation.retrieval.data import TEXT, Judged
from unime_jax.evaluation.retrieval.files import open_sets
from unime_jax.evaluation.tasks import captions, clustering, composition, mmeb, retrieval


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """Tasks of prepared sets, and what is not run.

    `sets` have the images of the tasks; `table` has the meta task and split of MMEB's datasets;
    `not_run` says why, by name of the set, or `<set>/<subset>` where others of its subsets are run.
    """

    tasks: tuple[tasks.Task, ...]
    sets: tuple[PreparedSet, ...]
    table: scores.Table
    not_run: Mapping[str, str]


WORDS = ("query_text", "target_text")  # of retrieval, in set.json: a text, or one by instructions
TRAINED_ON = "pairs"  # the kind of prepared sets that no model is evaluated on
NONE = Benchmarks((), (), {}, {})

# A task of a subset, by its name in `PreparedSet.subsets`.
TaskOf = Callable[[PreparedSet, str, TaskSettings], tasks.Task]


def open_benchmarks(
    folder: files.Path,
    names: Sequence[str],
    settings: TaskSettings,
    taken: Iterable[tuple[tasks.Kind, str]] = (),
) -> Benchmarks:
    """Tasks of the sets in a folder, of which at most the first row is read.

    A set that is missing, damaged, or of an unknown kind is in `not_run`, and is no error. So is a
    subset whose first row or image is not there.

    Args:
      names: of sets; (): all that are there, but for those to be trained on.
      taken: kinds and names of other tasks of the same evaluation.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    check_folder(folder)
    opened: list[tasks.Task] = []
    sets: list[PreparedSet] = []
    not_run: dict[str, str] = {}
    known = set(taken)
    for name in names or _names(folder):
        try:
            prepared = open_set(folder / name)
            if prepared.kind == TRAINED_ON and not names:
                continue
            makers = _makers(prepared)
        except (OSError, ValueError) as error:
            not_run[name] = str(error)
            continue
        sets.append(prepared)
        for subset, make in makers.items():
            try:
                task = make(prepared, subset, settings)
                if (task.kind, task.name) in known:
                    raise ValueError(f"the evaluation has {task} from other data, too")
            except (OSError, ValueError) as error:
                not_run[name if len(makers) == 1 else f"{name}/{subset}"] = str(error)
                continue
            known.add((task.kind, task.name))
            opened.append(task)
    if not_run:
        logging.warning("benchmark sets that are not run:\n%s", said(not_run))
    of_mmeb = [task.name for task in opened if task.kind == "mmeb"]
    table = {name: scores.MMEB_V1[name] for name in of_mmeb if name in scores.MMEB_V1}
    return Benchmarks(tuple(opened), tuple(sets), table, not_run)


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


def _makers(prepared: PreparedSet) -> dict[str, TaskOf]:
    """What makes the task of each subset; all files of a retrieval set are one.

    Raises:
      ValueError: the kind is not known.
    """
    if prepared.kind == "retrieval":
        return {prepared.name: _retrieval_task}
    if prepared.kind not in TASK_OF:
        raise ValueError(
            f"{prepared.folder / FILE} is of the kind {prepared.kind!r}; known are "
            f"{', '.join(sorted([*TASK_OF, 'retrieval']))}"
        )
    return dict.fromkeys(prepared.subsets, TASK_OF[prepared.kind])


def _mmeb_task(prepared: PreparedSet, subset: str, settings: TaskSettings) -> tasks.Task:
    """A dataset of MMEB or a video set of MMEB-V2, under its own name, which averages go by."""
    name = subset.removesuffix(SPLIT)
    if name not in scores.MMEB_V1 and name not in mmeb_v2_video.SETS:
        raise ValueError(f"{prepared.rows}: no meta task is known for MMEB's dataset {name!r}")
    rows = prepared.placed(subset, mmeb.PATH_COLUMNS)
    return mmeb.Task(name, mmeb_rows.worded(name, rows, settings.instructions), settings.limit)


def _retrieval_task(prepared: PreparedSet, subset: str, settings: TaskSettings) -> tasks.Task:
    """A judged corpus in BEIR's layout, or pairs of one source."""
    rows = prepared.rows
    sets = open_sets(rows if rows.is_dir() else rows.parent, {})
    if len(sets) != 1:
        raise ValueError(f"{rows} has {len(sets)} retrieval sets; a benchmark set is one")
    (data,) = sets
    if isinstance(data, Judged):
        query, target = (prepared.words(key, settings.instructions, TEXT) for key in WORDS)
        data = dataclasses.replace(data, query_text=query, target_text=target)
    elif given := [key for key in WORDS if key in prepared.record]:
        raise ValueError(f"{prepared.folder / FILE} has {' and '.join(given)}, but pairs take none")
    data = dataclasses.replace(data, name=prepared.name, folder=prepared.images)  # type: ignore[type-var]
    return retrieval.Task(data, settings.limit)


TASK_OF: Mapping[str, TaskOf] = {  # by kind
    "mmeb": _mmeb_task,
    "composition": composition.task_of,
    "captions": captions.task_of,
    "clustering": clustering.task_of,
}
