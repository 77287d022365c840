"""A run's schedule against what may happen to it: preemption, and the cost of evaluations."""

import json
from collections.abc import Mapping
from typing import Any

from unime_jax import config, files
from unime_jax.data import formats
from unime_jax.jobs.doctor_report import Report

MEASURED = 5  # steps that a run has done, at least, for its time to be told
LONG = 200  # steps without a checkpoint, where their time is not known
EVALUATIONS = 0.5  # of the training's work
PASSES, AGAIN = 3, 1  # a step's work in forward passes: backward counts twice; and GradCache's own
ITEMS = 2  # of an evaluated row: a query, and its share of the candidates


def step_seconds(
    settings: config.DoctorOptions, workdir: files.Path, planned: float | None, by_plan: str
) -> tuple[float | None, str]:
    """Seconds of a step, and how they are known; None: they are not."""
    if settings.step_seconds is not None:
        return settings.step_seconds, "config.doctor.step_seconds"
    try:
        summary = files.read_object(workdir / "goodput.json")
        steps, compute = int(summary["steps"]), float(summary["seconds"]["compute"])
        if steps >= MEASURED and compute > 0:
            return compute / steps, f"measured over {steps} steps, {workdir}/goodput.json"
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there has been no run, or its statistics are damaged
    return (planned, by_plan) if planned else (None, "")


def check_checkpoints(
    report: Report,
    facts: dict[str, Any],
    settings: config.TrainConfig,
    seconds: float | None,
    known_by: str,
    lost_minutes: float,
) -> None:
    """What a preemption costs by `checkpoint.every`; `seconds`: of a step, None: not known."""
    every, steps = settings.checkpoint.every, settings.steps
    if every < 1 or settings.checkpoint.keep < 1:
        report.add(
            "error",
            "schedule.checkpoint",
            f"config.checkpoint.every={every} and config.checkpoint.keep="
            f"{settings.checkpoint.keep} must be 1 or more",
            where="config.checkpoint.every",
            do="Set them to how many steps a preemption may cost, and 2 or more.",
        )
        return
    if settings.checkpoint.keep == 1:
        report.add(
            "warning",
            "schedule.keep",
            "config.checkpoint.keep=1: if the only checkpoint is damaged, there is none to go back "
            "to",
            where="config.checkpoint.keep",
            do="Set it to 2 or more.",
        )
    between = min(every, steps)
    if seconds is None:
        report.skip(
            "schedule.checkpoint",
            "the seconds of a step are not known: --config.doctor.slice=v5e:4x4 estimates them for "
            "a slice, --config.doctor.step_seconds=... says them",
        )
        if between == steps >= LONG:
            report.add(
                "warning",
                "schedule.checkpoint",
                f"config.checkpoint.every={every} is all of the {steps} steps: a preemption loses "
                "everything",
                where="config.checkpoint.every",
                do=f"Set it to {max(1, steps // 10)} or so.",
            )
        return
    minutes = between * seconds / 60
    facts["step"] = f"{seconds:.3g} s ({known_by})"
    facts["run"] = f"{steps * seconds / 3600:.2g} h for {steps} steps"
    facts["between checkpoints"] = f"{minutes:.2g} minutes"
    if minutes > lost_minutes:
        fitting = max(1, int(60 * lost_minutes / seconds))
        report.add(
            "warning",
            "schedule.checkpoint",
            f"config.checkpoint.every={every} steps of {seconds:.3g} s ({known_by}) are "
            f"{minutes:.0f} minutes, and a preemption loses up to that (config.doctor.lost_minutes="
            f"{lost_minutes:g})",
            where="config.checkpoint.every",
            do=f"Set it to {fitting} or less.",
        )


def check_evaluations(report: Report, facts: dict[str, Any], settings: config.TrainConfig) -> None:
    """The work of evaluations during training against that of the training."""
    evaluation, folder = settings.evaluation, files.as_path(settings.data.folder)
    rows = 0
    for name in filter(None, (evaluation.mmeb, evaluation.composition)):
        try:
            sizes = [len(source) for source in formats.open_dataset(folder / name).values()]
        except (OSError, ValueError) as error:
            said = str(error).partition(":")[0]
            report.skip("schedule.evaluation", f"its data cannot be counted: {said}")
            return
        rows += sum(min(size, evaluation.limit or size) for size in sizes)
    if not rows:
        return
    times = max(0, (settings.steps - 1) // evaluation.every) if evaluation.every > 0 else 0
    facts["evaluation"] = f"{rows} rows, at both ends" + (f" and {times} times" if times else "")
    items = settings.steps * settings.batch_size * (2 + settings.data.negatives)
    share = times * ITEMS * rows / max(1, items * (PASSES + AGAIN * settings.execution.recompute))
    if share > EVALUATIONS:
        report.add(
            "warning",
            "schedule.evaluation",
            f"config.evaluation.every={evaluation.every} evaluates {times} times, which is about "
            f"{share:.0%} of the training's own work",
            where="config.evaluation.every",
            do="Raise it, or look at the first rows of each dataset alone "
            "(config.evaluation.limit).",
        )


def check_extended(report: Report, workdir: files.Path, values: Mapping[str, Any]) -> None:
    """A work directory that holds a run already: of the same config, or of another."""
    steps = [p.name for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    if steps:
        newest = max(map(int, steps))
        report.add(
            "note",
            "schedule.resumes",
            f"{workdir} holds a run that has a checkpoint of step {newest}, and the command goes "
            f"on from there, up to step {json.dumps(values.get('steps'))}",
            where="--workdir",
            do="Give another --workdir for a run of its own.",
        )
