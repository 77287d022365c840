"""Rounds of mine, judge and train: each mines with the model that the round before has trained.

The parts are the jobs themselves, one after another in this process, each in a work directory of
its own: round_1/mine, round_1/judge, round_1/train and so on. rounds.json lists those that are
complete; after a kill the same command goes on in the one that is not, which resumes as the job
does by itself.
"""

import contextlib
import gc
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from unime_jax import config, config_reader, files
from unime_jax.data.mined_rows import DataChangedError
from unime_jax.data.mined_table import RECORD
from unime_jax.evaluation.side_by_side import tables
from unime_jax.evaluation.side_by_side.runs import Group, read_run
from unime_jax.jobs import boundary, judge, mine, preflight_rounds, round_parts, train
from unime_jax.jobs.round_parts import Part
from unime_jax.operations import compilation_cache, processes
from unime_jax.operations.config_file import write_config
from unime_jax.training import inputs, resume

PROGRESS = "rounds.json"
JOBS: dict[str, Callable[[ConfigDict, files.Path], None]] = {
    "mine": mine.run,
    "judge": judge.run,
    "train": train.run,
}


def run(config_dict: ConfigDict, workdir: files.Path) -> None:
    """Begins or resumes the rounds in `workdir`.

    Raises:
      ValueError: the config does not make sense, or not in this work directory; or what a part
        raises.
      RuntimeError: what a part raises.
      SystemExit: what a training exits with, when it was told to stop or no step was finite.
    """
    settings = config_reader.read(config.RoundsConfig, config_dict.to_dict())
    parts = list(round_parts.parts(config_dict, workdir))
    preflight_rounds.check(settings, parts, workdir)
    folder = files.as_path(settings.data.folder)
    prepared = (settings.initial or settings.train).data.prepare
    with boundary.owning(workdir, "rounds.lock", "runs rounds in", folder):
        complete = _read_progress(workdir)
        check_config(workdir, config_dict, complete)
        processes.barrier("rounds begin")  # all have read what is written from here on
        write_config(workdir, config_dict)
        # Parts with "auto" then keep their programs there, too, for the rounds to come.
        compilation_cache.use_for_job(settings.train.compilation_cache, workdir)
        if prepared.module:
            inputs.prepare(prepared, folder)
            preflight_rounds.check(settings, parts, workdir)  # with all that is new
        for part in parts:
            if part.name in complete:
                logging.info("%s is complete", part.name)
                continue
            _run_part(part, settings, workdir)
            complete.append(part.name)
            if jax.process_index() == 0:
                if part.job == "train":
                    write_report(workdir, parts, complete)
                _write_progress(workdir, complete)


def _run_part(part: Part, settings: config.RoundsConfig, workdir: files.Path) -> None:
    """One job, to its end; all processes leave together."""
    logging.info(
        "%s, of %d rounds: job %s by config.%s", part.name, settings.rounds, part.job, part.group
    )
    try:
        JOBS[part.job](part.values, workdir / part.name)
        if part.job == "mine":
            _check_same_data(part, workdir)
    except (ValueError, RuntimeError) as error:
        if error.args and isinstance(error.args[0], str):  # its keys are below the part's here
            kind = config.kind_of(part.values)
            said = config_reader.placed(kind, error.args[0], f"config.{part.group}")
            error.args = (f"{part.name}: {said}", *error.args[1:])
        raise
    processes.barrier("a part of the rounds is complete")
    jax.clear_caches()  # the next model needs the devices' memory, programs too
    gc.collect()


def _check_same_data(part: Part, workdir: files.Path) -> None:
    """Raises DataChangedError if a round was mined for other rows than one before it."""
    records = [workdir / f"round_{n}" / "mine" / RECORD for n in range(1, part.round + 1)]
    records = [record for record in records if record.exists()]  # some may have been removed
    first, this = (
        files.read_object(record)["provenance"]["data"] for record in (records[0], records[-1])
    )
    if first != this:
        raise DataChangedError(
            f"the data have changed since {records[0].parent} was mined, so that rounds could not "
            "be compared. Go back to those data, or begin in another work directory"
        )


def _read_progress(workdir: files.Path) -> list[str]:
    """Names of the parts that are complete."""
    try:
        return list(files.read_object(workdir / PROGRESS)["complete"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{workdir / PROGRESS} is damaged ({error}); remove it: parts that are complete are "
            "looked at again, by their own files"
        ) from error


def _write_progress(workdir: files.Path, complete: Sequence[str]) -> None:
    files.write_whole(workdir / PROGRESS, json.dumps({"complete": list(complete)}, indent=2) + "\n")


# Keys that may change when parts with them are complete: memory and places, not results.
_FREE = {
    "": ("rounds", "data.folder"),
    "mine": (
        "batch_size",
        "compilation_cache",
        "mesh",
        "data.folder",
        "data.max_bad_share",
        "search.rows",
        "search.columns",
        "output.block",
    ),
    "judge": (
        "batch_size",
        "compilation_cache",
        "mesh",
        "data.folder",
        "data.max_bad_share",
        "judging.share_prefix",
    ),
    "train": resume.FREE,
    "initial": resume.FREE,
}


def check_config(workdir: files.Path, config_dict: ConfigDict, complete: Sequence[str]) -> None:
    """Compares the config with <workdir>/config.json, as far as parts are complete.

    Keys of a part that is not complete are left to it. More rounds may be asked for at any time.

    Raises:
      ValueError: complete parts had other values; the message lists them.
    """
    if not complete or jax.process_index() != 0:
        return
    file = workdir / "config.json"
    try:
        earlier = files.read_object(file)
    except FileNotFoundError:
        logging.warning("%s is gone, so that the config cannot be compared with it", file)
        return
    except ValueError as error:
        raise ValueError(
            f"{error}; repair it, or remove it if the config has not changed."
        ) from error
    changed = files.changes(earlier, config_dict.to_dict())
    serious = {key: both for key, both in changed.items() if _is_serious(key, complete)}
    if serious:
        raise ValueError(
            f"{workdir} holds rounds of another config. Changed since, with parts that are "
            f"complete:\n{resume.listed(serious)}\nGo on with the earlier values, or use another "
            "work directory."
        )
    if changed:
        logging.info("the config has changed, applied from now on:\n%s", resume.listed(changed))


def _is_serious(key: str, complete: Sequence[str]) -> bool:
    """Whether a part that is complete would have been another with a new value of a key."""
    group, _, name = key.partition(".")
    if group not in _FREE or not name:  # of all rounds, or a group as a whole
        return not resume.is_in(key, _FREE[""])
    if resume.is_in(name, _FREE[group]):
        return False
    jobs = {"mine": ("mine",), "judge": ("judge", "train"), "train": ("train",)}
    begun = [part for part in complete if part != round_parts.INITIAL]
    return group == "initial" or any(part.endswith(jobs[group]) for part in begun)


def write_report(workdir: files.Path, parts: Sequence[Part], complete: Sequence[str]) -> None:
    """Writes <workdir>/report.html, .md, .tex and .csv: a line before training, then one a round.

    Without an evaluation there is none.
    """
    groups = []
    trained = [part for part in parts if part.job == "train" and part.name in complete]
    with contextlib.suppress(ValueError):  # no scores
        if trained:
            groups.append(Group("before", (read_run(workdir / trained[0].name, "before"),)))
        for part in trained:
            groups.append(Group(f"round {part.round}", (read_run(workdir / part.name),)))
    if not groups:
        return
    nothing: dict[str, Any] = {"chosen": {}, "models": (), "baseline": groups[0].name}
    compared = tables.write(workdir / "report", groups, title=f"Rounds {workdir.name}", **nothing)
    logging.info(
        "%s\n\n%s\nreport: %s.html", workdir, tables.averages(compared), workdir / "report"
    )
