"""Results of finished tasks on disk: an evaluation that was killed goes on with the others."""

import json
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from unime_jax import files
from unime_jax.evaluation import tasks
from unime_jax.evaluation.stored import results
from unime_jax.evaluation.tasks.retrieval import RetrievalResult
from unime_jax.evaluation.tasks.viewed import WHOLE

FOLDER = "results"
SET = "benchmark set "  # begins the keys of such sets in the record


def load(
    workdir: files.Path, suite: Iterable[tasks.Task], views: Sequence[str] = (WHOLE,)
) -> dict[tuple[tasks.Kind, str], dict[str, Any]]:
    """Results by view, by kind and name of those tasks that are finished, in all of `views`.

    A damaged file is set aside, and its task counts as unfinished. So does one of retrieval that an
    earlier version made, without all that scores are of.
    """
    finished = {}
    for task in suite:
        loaded = {view: _load(_path(workdir, task, view)) for view in views}
        if all(result is not None for result in loaded.values()):
            finished[task.kind, task.name] = loaded
    return finished


def _load(path: files.Path) -> results.Result | None:
    try:
        result = results.load_result(path)
        if isinstance(result, RetrievalResult) and np.isnan(result.ndcg_5).any():
            logging.info("%s is made again: an earlier version kept no nDCG@5", path)
            return None
        return result
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged archives raise whatever zipfile, zlib and NumPy do
        files.set_aside(path, error)
        return None


def save(workdir: files.Path, task: tasks.Task, by_view: Mapping[str, results.Result]) -> None:
    """Writes a task's results by view, each whole or not at all."""
    for view, result in by_view.items():
        path = _path(workdir, task, view)
        path.parent.mkdir(exist_ok=True)
        results.save_result(path, result)


def check_same(
    workdir: files.Path, provenance: dict[str, Any], sets: Mapping[str, Any] | None = None
) -> None:
    """Compares an evaluation with that which `workdir` was begun with, or begins it.

    Args:
      provenance: contents of the model and of the data, and all settings that a score depends on,
        as JSON.
      sets: the same of benchmark sets by name. Others than before are no change, so that a set that
        could not be run may be prepared in between.

    Raises:
      ValueError: they differ, so that results would be mixed; the message lists where.
    """
    path = workdir / FOLDER / "evaluation_of.json"
    named = {f"{SET}{name}": of for name, of in (sets or {}).items()}
    now = json.loads(json.dumps({**provenance, **named}))
    try:
        earlier = files.read_object(path)
    except FileNotFoundError:
        if left := sorted((workdir / FOLDER).glob("*.npz")):
            raise ValueError(
                f"{path} is gone, so that nobody knows which model {left[0]} is of. Remove"
                f" {workdir / FOLDER}, or use another --workdir."
            ) from None
        path.parent.mkdir(exist_ok=True)
        files.write_whole(path, json.dumps(now, indent=2) + "\n")
        return
    except ValueError as error:
        raise ValueError(
            f"{error}. Remove {workdir / FOLDER}, and all is evaluated again."
        ) from error
    both = earlier.keys() & now.keys()
    keys = [
        key
        for key in {**earlier, **now}
        if earlier.get(key) != now.get(key) and (key in both or not key.startswith(SET))
    ]
    if keys:
        listed = "\n".join(f"  {key}: {earlier.get(key)} -> {now.get(key)}" for key in keys)
        raise ValueError(
            f"{workdir} holds results of another evaluation. Changed since:\n{listed}\nUse another "
            f"--workdir, or remove {workdir / FOLDER} to evaluate all again."
        )
    if now.keys() - earlier.keys():
        files.write_whole(path, json.dumps({**earlier, **now}, indent=2) + "\n")


def _path(workdir: files.Path, task: tasks.Task, view: str) -> files.Path:
    name = urllib.parse.quote(task.name, safe=" ")
    name += f"@{view}" if view else ""  # which no quoted name has
    return workdir / FOLDER / f"{task.kind}-{name}.npz"
