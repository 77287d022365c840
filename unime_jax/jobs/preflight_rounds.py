"""Preflight checks of rounds: those of every part, as far as its inputs are there."""

import dataclasses
from collections.abc import Sequence

from unime_jax import config, config_reader, files
from unime_jax.data import heads
from unime_jax.data.pairs import open_pairs
from unime_jax.jobs import embed, preflight, preflight_models
from unime_jax.jobs.common_checks import Made, Problems
from unime_jax.jobs.round_parts import Part
from unime_jax.training import evaluations, inputs, resume
from unime_jax.training.setup import make_mesh


def check(settings: config.RoundsConfig, parts: Sequence[Part], workdir: files.Path) -> None:
    """Models, data, devices and schedules of all parts, before any of them begins.

    What an earlier part makes cannot be looked at, nor what `data.prepare` has yet to make.

    Raises:
      ValueError: all that is wrong.
    """
    if files.is_remote(str(workdir)):
        raise ValueError(
            f"--workdir={workdir}: jobs mine and judge write to local folders alone. Mount the"
            " bucket and give the mounted folder"
        )
    problems = Problems()
    with problems.collected():
        resume.open_workdir(workdir)
    check_parts(settings, parts, workdir, problems)
    problems.raise_any()


def check_parts(
    settings: config.RoundsConfig, parts: Sequence[Part], workdir: files.Path, problems: Problems
) -> None:
    """Adds what is wrong with any of the parts."""
    for part in parts:  # with what each round sets
        with problems.collected():
            values = part.values.to_dict()
            config_reader.read(config.kind_of(values), values, f"config.{part.group}")
    folder = files.as_path(settings.data.folder)
    first = settings.initial or settings.train
    made = Made(folder, bool(first.data.prepare.module))
    trained = settings.train
    if settings.initial is not None and settings.start == "last":  # from weights that are to come
        model = settings.initial.backbone, settings.initial.revision
        trained = dataclasses.replace(trained, backbone=model[0], revision=model[1], init="random")
    for name, training in (("initial", settings.initial), ("train", trained)):
        if training is not None:
            with problems.of_part(config.TrainConfig, f"config.{name}") as of_part:
                with of_part.collected():
                    make_mesh(training)
                with of_part.collected():
                    evaluations.check(training)
                preflight.check_training(training, workdir, of_part, joined_later=name == "train")
    with problems.of_part(config.MineConfig, "config.mine") as of_part:
        with of_part.collected():
            embed.local_mesh(settings.mine.mesh)
        if not made.later(folder / settings.data.train):
            preflight_models.check_mined_data(settings.mine, of_part)
        if settings.initial is None and not made.later(files.as_path(settings.backbone)):
            preflight_models.check_embedder(settings.mine, of_part)
    if settings.judged:
        with problems.of_part(config.JudgeConfig, "config.judge") as of_part:
            with of_part.collected():
                embed.local_mesh(settings.judge.mesh)
            preflight_models.check_judge(settings.judge, of_part)
            if not made.later(folder / settings.data.train):
                preflight_models.check_judged_data(settings.judge.data, of_part)
    if not made.later(folder / settings.data.train):
        _check_mined_for(settings, problems)


def _check_mined_for(settings: config.RoundsConfig, problems: Problems) -> None:
    """Whether all rows that are trained on are mined for."""
    data = settings.mine.data
    try:
        pairs = open_pairs(files.as_path(data.folder) / data.train, data.columns)
        mined = heads.heads(pairs, data.first_rows, data.first_rows_by_source)
        used = inputs.open_rows(settings.train.data)
    except (ValueError, OSError):  # it is among the problems already
        return
    for name in settings.train.data.weights or used:
        count = len(mined[name]) if name in (data.sources or mined) else 0
        if name in used and len(used[name]) > count:
            problems.add(
                f"of source {name!r} {len(used[name])} rows are trained on and {count} mined for: "
                "config.mine.data.sources, first_rows and first_rows_by_source must cover those of"
                " config.train.data.weights, first_rows and first_rows_by_source"
            )
