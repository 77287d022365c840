"""A training run as the doctor sees it: backbone, rows, batches, settings, schedule, plan, room."""

from collections.abc import Mapping
from typing import Any

import jax

from unime_jax import config, files
from unime_jax.backbones import Backbone
from unime_jax.data.formats import Source
from unime_jax.data.packing import Preprocess
from unime_jax.jobs import (
    doctor_backbone,
    doctor_batches,
    doctor_data,
    doctor_environment,
    doctor_model,
    doctor_plan,
    doctor_room,
    doctor_rows,
    doctor_schedule,
    doctor_settings,
    preflight,
)
from unime_jax.jobs.common_checks import Made, Problems
from unime_jax.jobs.doctor_model import Model, mesh_of
from unime_jax.jobs.doctor_report import Report
from unime_jax.jobs.doctor_rows import Sample
from unime_jax.jobs.doctor_settings import check_recipe
from unime_jax.training import evaluations, inputs, resume, setup
from unime_jax.training.loss_settings import Distillation

__all__ = ["check_recipe", "check_start", "examine", "mesh_of"]


def check_start(
    settings: config.TrainConfig, values: Mapping[str, Any], workdir: files.Path, problems: Problems
) -> None:
    """What the run looks at before it builds anything; `values`: its whole config."""
    with problems.collected():
        evaluations.check(settings)
    with problems.collected():
        resume.changes(workdir, values)
    preflight.check_training(settings, workdir, problems)


def examine(
    report: Report,
    settings: config.TrainConfig,
    options: config.DoctorOptions,
    values: Mapping[str, Any],
    workdir: files.Path,
    *,
    known: bool,
) -> None:
    """Everything about a training, part by part.

    Args:
      values: its whole config; {}: it is a part of another one, whose work directory is not its.
      known: whether the devices here are those of the run.
    """
    made = Made(files.as_path(settings.data.folder), bool(settings.data.prepare.module))
    backbone = _backbone(report, settings, made)
    rows = _rows(report, settings, made)
    model = None
    if backbone is not None:
        with report.part("model") as facts:
            if known or options.slice:
                model = doctor_model.trace(settings, backbone, rows, options.slice)
                share = model.trained / model.parameters
                facts["trained"] = f"{model.trained:,} of {model.parameters:,} ({share:.2%})"
            else:
                report.skip("model", "the devices of the run are not known; --config.doctor.slice")
    complete = settings if model is None else model.settings
    sample = None
    if rows:
        with report.part("data") as facts:
            sample = _sample(report, complete, rows, backbone, model, options.rows)
            facts["read"] = f"{sample.total} of {sum(sample.rows.values())} rows"
            doctor_data.check(report, complete, sample)
        if sample is not None:
            with report.part("batches") as facts:
                shapes = None if model is None else model.run.shapes
                doctor_batches.check(report, facts, complete, sample, shapes)
    with report.part("settings"):
        doctor_settings.check(report, complete, model)
    planned = None
    with report.part("plan") as facts:
        if model is None:
            report.skip("plan.memory", "the model could not be traced")
        else:
            planned = doctor_plan.check(report, facts, model, sample, options, workdir)
    with report.part("schedule") as facts:
        by_plan = "by the plan, as if all rows were the longest"
        if sample is not None:
            by_plan = "at least, by the plan"
        seconds, known_by = doctor_schedule.step_seconds(options, workdir, planned, by_plan)
        doctor_schedule.check_checkpoints(
            report, facts, complete, seconds, known_by, options.lost_minutes
        )
        doctor_schedule.check_evaluations(report, facts, complete)
        if values:
            doctor_schedule.check_extended(report, workdir, values)
    with report.part("room") as facts:
        here = not (known and options.slice)
        if model is None:
            report.skip("room.disk", "the size of checkpoints is not known without the model")
        else:
            doctor_room.check_disk(report, facts, model, workdir, here=here)
        if here:
            _check_machine(report, facts, settings, model, workdir, known=known, sources=len(rows))
        else:
            report.skip("room.machine", f"the host of {options.slice} is not this machine")


def _check_machine(
    report: Report,
    facts: dict[str, Any],
    settings: config.TrainConfig,
    model: Model | None,
    workdir: files.Path,
    *,
    known: bool,
    sources: int,
) -> None:
    """What the run needs of this machine beside disks and devices."""
    workers = settings.data.workers
    doctor_environment.check_limits(report, workers=workers, sources=sources)
    doctor_room.check_shared_memory(report, workers)
    doctor_room.check_folders(report, settings, workdir)
    if model is not None:
        cpus = known and jax.default_backend() == "cpu"
        doctor_room.check_memory(report, facts, model, doctor_room.free_memory(), cpus=cpus)


def _backbone(report: Report, settings: config.TrainConfig, made: Made) -> Backbone | None:
    """The opened backbone, looked at; None: it cannot be, which is said."""
    folder = files.as_path(settings.backbone)
    if not settings.init_from and made.later(folder):
        report.skip("backbone", _later(settings, "config.backbone", folder))
        return None
    with report.part("backbone") as facts:
        longest = doctor_model.longest_of(settings)
        try:
            backbone = doctor_model.open_backbone(settings, longest)
        except (ValueError, OSError):
            report.skip("backbone", "it cannot be opened, as an error says")
            return None
        setup.say_what_is_not_used(settings.backbone, backbone.defaults, longest)
        pictured = not settings.data.buckets or settings.data.buckets[-1].tiles > 0
        doctor_backbone.check(
            report,
            facts,
            backbone,
            weights=bool(settings.init_from) or settings.init == "pretrained",
            images=pictured and not isinstance(settings.loss, Distillation),
            processing=settings.processing,
        )
        return backbone
    return None


def _rows(report: Report, settings: config.TrainConfig, made: Made) -> Mapping[str, Source]:
    """The training data by source; none: they are not there, which is said."""
    path = made.folder / settings.data.train
    if made.later(path):
        report.skip("data", _later(settings, "config.data.train", path))
        return {}
    try:
        rows = inputs.open_rows(settings.data)
        return {name: rows[name] for name in inputs.weights_of(settings.data, rows) if rows[name]}
    except (ValueError, OSError, KeyError):
        report.skip("data", "the rows cannot be opened, as an error says")
        return {}


def _sample(
    report: Report,
    settings: config.TrainConfig,
    rows: Mapping[str, Source],
    backbone: Backbone | None,
    model: Model | None,
    count: int,
) -> Sample:
    preprocess: Preprocess | None = None if backbone is None else backbone.preprocess
    if model is not None:
        preprocess = model.preprocess
    if preprocess is None:
        report.skip("data.lengths", "texts and images are not measured without the backbone")
    weights = inputs.weights_of(settings.data, rows)
    return doctor_rows.read(settings.data.train, rows, weights, preprocess, count, settings.seed)


def _later(settings: config.TrainConfig, key: str, path: files.Path) -> str:
    return (
        f"{key}: {path} is not there yet, and the run may make it itself "
        f"(config.data.prepare.module={settings.data.prepare.module!r}). Ask again when it is: a "
        "run with --config.steps=1 in a work directory of its own makes it"
    )
