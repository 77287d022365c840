"""Look at a run before it is started, and say what will go wrong: environment, model, data, config.

Problems of one part hide none of another. What cannot be checked is said, too. Nothing is trained,
prepared or downloaded but small files of a hub id; what is written is <workdir>/doctor.json.
"""

import dataclasses
import sys

import jax
from ml_collections import ConfigDict

from unime_jax import __version__, config, config_reader, files
from unime_jax.jobs import (
    doctor_environment,
    doctor_inference,
    doctor_processes,
    doctor_report,
    doctor_training,
    embed,
    judge,
    preflight,
    preflight_models,
    preflight_rounds,
    round_parts,
)
from unime_jax.jobs.common_checks import Problems
from unime_jax.jobs.doctor_report import Report
from unime_jax.jobs.evaluated_model import model_source
from unime_jax.planning import chips
from unime_jax.training import resume

FILE = "doctor.json"  # of a work directory


def run(config_dict: ConfigDict, workdir: files.Path) -> None:
    """Writes the report to standard output, and to <workdir>/`FILE`.

    Raises:
      ValueError: the doctor's own keys do not make sense.
      SystemExit: status 1 if there are errors, 2 if there are warnings alone.
    """
    settings = config_reader.read(config.DoctorConfig, config_dict.to_dict())
    if settings.doctor.slice:
        chips.parse(settings.doctor.slice)
    report = examine(settings, config_dict.run, workdir)
    recipe, job = settings.command.recipe, settings.run.job
    text = doctor_report.as_json(report, recipe, job, str(workdir))
    try:
        files.write_whole(workdir / FILE, text)
    except OSError as error:
        report.skip("report", f"{workdir / FILE} cannot be written: {error.strerror or error}")
    headline = f"unime_jax {__version__}: {recipe}, job {job}, in {workdir}"
    sys.stdout.write(doctor_report.as_text(report, headline))
    if status := doctor_report.STATUS[report.worst]:
        sys.exit(status)


def examine(settings: config.DoctorConfig, values: ConfigDict, workdir: files.Path) -> Report:
    """The report on a run; `values`: its whole config."""
    report, options, of_run = Report(), settings.doctor, settings.run
    joins = doctor_processes.joins(settings.command)
    with report.part("environment") as facts:
        doctor_environment.check_versions(report, facts)
        doctor_environment.check_clock(report)
        known = doctor_environment.check_devices(report, facts, joins=joins)
        if not known:
            jax.config.update("jax_platforms", "cpu")  # for what is only traced
    with report.part("processes"):
        doctor_processes.check(report, settings.command)
    problems = Problems()
    with report.part("workdir"):
        with problems.collected():
            resume.open_workdir(workdir)
        report.add_problems("workdir.written", problems)
    with report.part("config"):
        _check_job(report, settings, values, workdir, known=known)
    if isinstance(of_run, config.TrainConfig) and of_run.job == "train":
        doctor_training.examine(report, of_run, options, values.to_dict(), workdir, known=known)
        with report.part("config"):
            doctor_training.check_recipe(report, values.to_dict(), settings.command.recipe)
    elif isinstance(of_run, config.RoundsConfig):
        part = Report()
        trained = of_run.train
        if of_run.initial is None:
            trained = dataclasses.replace(
                trained, backbone=of_run.backbone, revision=of_run.revision
            )
        doctor_training.examine(part, trained, options, {}, workdir, known=known)
        report.of_part(config.TrainConfig, "config.train", part)
        report.skip("data.mined", "what a round mines and judges is not there before it")
    else:
        doctor_inference.examine(report, of_run, options)
    return report


def _check_job(
    report: Report,
    settings: config.DoctorConfig,
    values: ConfigDict,
    workdir: files.Path,
    *,
    known: bool,
) -> None:
    """What the job itself looks at before it begins; `known`: whether its devices are."""
    problems, of_run = Problems(), settings.run
    if isinstance(of_run, config.TrainConfig):
        if of_run.job == "train":
            doctor_training.check_start(of_run, values.to_dict(), workdir, problems)
        else:
            preflight.check_export(of_run, problems)
        if known or settings.doctor.slice:
            with problems.collected():
                doctor_training.mesh_of(of_run, settings.doctor.slice)
        else:
            report.skip(
                "config.mesh", "the devices of the run are not known; --config.doctor.slice"
            )
    elif isinstance(of_run, config.RoundsConfig):
        parts = list(round_parts.parts(values, workdir))
        preflight_rounds.check_parts(of_run, parts, workdir, problems)
    else:
        _check_inference(of_run, workdir, problems, known=known)
    report.add_problems("config.problem", problems)


def _check_inference(
    of_run: config.Settings, workdir: files.Path, problems: Problems, *, known: bool
) -> None:
    """Jobs that run models and train none."""
    if isinstance(of_run, config.EmbedConfig):
        preflight_models.check_embedding(of_run, problems)
    elif isinstance(of_run, config.MineConfig):
        preflight_models.check_mining(of_run, problems)
    elif isinstance(of_run, config.JudgeConfig):
        preflight_models.check_judging(of_run, problems)
    elif isinstance(of_run, config.MergeConfig):
        preflight_models.check_merge(of_run, workdir, problems)
    elif isinstance(of_run, config.EvaluateConfig):
        with problems.collected("config.backbone"):
            preflight_models.check_evaluation(of_run, model_source(of_run.backbone), problems)
    if known and isinstance(of_run, config.EmbedConfig | config.MineConfig):
        with problems.collected():
            embed.local_mesh(of_run.mesh)
    if known and isinstance(of_run, config.JudgeConfig):
        with problems.collected():
            judge.make_mesh(of_run)
