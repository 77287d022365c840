"""Preflight checks: problems that are cheap to see before anything is built, all listed at once.

What a run prepares itself, below `data.folder`, cannot be looked at yet and is left out.
"""

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from absl import logging
from jax.sharding import Mesh

from unime_jax import config, files, paths
from unime_jax.data import (
    formats,
    sampling,
    schema,
)
from unime_jax.data.quarantine import BadExample
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import pair_shapes
from unime_jax.export.folder import check_truncation
from unime_jax.jobs.common_checks import (
    Made,
    Problems,
    check_module,
    check_sets,
    check_tasks,
    check_teacher,
    check_texts,
    open_model,
)
from unime_jax.training import (
    automatic,
    backbone_checks,
    batch_clusters,
    checkpoint,
    inputs,
    optimizer,
    resume,
    setup,
)
from unime_jax.training.loss_settings import (
    Contrastive,
    Distillation,
    JudgeDistillation,
    contrastive_part,
)


def check(
    make_mesh: Callable[[], Mesh], workdir: files.Path, of_job: Callable[[Problems], None]
) -> Mesh:
    """The mesh of a job, after all cheap checks.

    Args:
      make_mesh: raises ValueError if it does not fit the devices.
      workdir: made if absent.
      of_job: adds what is wrong with a job's own keys.

    Raises:
      ValueError: all that is wrong.
    """
    problems = Problems()
    mesh = None
    with problems.collected():
        mesh = make_mesh()
    with problems.collected():
        resume.open_workdir(workdir)
    of_job(problems)
    problems.raise_any()
    assert mesh is not None
    return mesh


def check_training(
    settings: config.TrainConfig,
    workdir: files.Path,
    problems: Problems,
    *,
    joined_later: bool = False,
) -> None:
    """Backbone, data, evaluation data, schedule, rules and checkpoints' place of a training run.

    `joined_later`: the rows' negatives and scores are still to be made.
    """
    with problems.collected():
        checkpoint.check_name(workdir)
    folder = files.as_path(settings.data.folder)
    made = Made(folder, bool(settings.data.prepare.module))
    with problems.collected():
        if not settings.epochs:
            optimizer.check_schedule(settings.optimizer, settings.steps)
    _check_rules(settings, problems)
    if settings.wandb_project and importlib.util.find_spec("wandb") is None:
        problems.add(
            f"config.wandb_project={settings.wandb_project!r}, but the package wandb is not "
            "installed: pip install wandb, or leave the key None"
        )
    if settings.data.prepare.module and files.is_remote(settings.data.folder):
        problems.add(
            f"config.data.folder={settings.data.folder}: data is prepared in a local folder. "
            "Prepare it there, copy it into the bucket, and set config.data.prepare.module to ''"
        )
    if settings.data.prepare.module:
        check_module(settings.data.prepare.module, problems)
    _check_model(settings, made, problems)
    if not settings.data.train:
        problems.add("config.data.train is empty: name the training data, below config.data.folder")
    elif not made.later(folder / settings.data.train):
        with problems.collected("config.data.train"):
            rows = inputs.open_rows(settings.data)
            weights = inputs.weights_of(settings.data, rows)
            inputs.check_mixture(settings, rows, weights)
            if settings.data.cluster_size and not joined_later:
                batch_clusters.check(rows)
            if settings.epochs:
                optimizer.check_schedule(settings.optimizer, automatic.steps_of(settings, rows))
            if settings.data.split_modalities:
                sampling.query_modalities(rows, weights)
            _check_sources(settings, weights)
            _check_grades(settings, {name: rows[name] for name in weights})
            if not joined_later:
                _check_contrast(settings, {name: rows[name] for name in weights})
                _check_scores(settings, {name: rows[name] for name in weights})
    check_teacher(settings.data.teacher, folder, made, problems)
    _check_evaluation(settings, folder, made, problems)


def check_export(settings: config.TrainConfig, problems: Problems) -> None:
    """Backbone and data of an export."""
    folder = files.as_path(settings.data.folder)
    _check_model(settings, Made(folder, False), problems)
    if settings.data.train:
        with problems.collected("config.data.train"):
            inputs.open_rows(settings.data)


def _check_model(settings: config.TrainConfig, made: Made, problems: Problems) -> None:
    key, source = "config.backbone", settings.backbone
    if not source:
        problems.add("config.backbone is empty: name the folder or hub id of a model")
        return
    if settings.init_from:
        key = "config.init_from"
        with problems.collected(key):
            source = setup.exported(settings.init_from)
        if source == settings.backbone:
            return
    elif made.later(files.as_path(source)):
        return
    with problems.collected(key):
        longest = max((bucket.tokens for bucket in settings.data.buckets), default=None)
        weights = bool(settings.init_from) or settings.init == "pretrained"
        revision = None if settings.init_from else settings.revision
        backbone = open_model(
            source,
            revision,
            longest,
            settings.processing,
            weights=weights,
            clips=settings.data.clips,
        )
        backbone_checks.check_dims(settings, backbone.dimension)
        check_truncation(backbone, settings.export.truncate_dim)
        # Buckets that are chosen by the data stand in for a moment.
        pair_shapes(
            settings.data.buckets or (Bucket(tokens=1, tiles=0),),
            backbone.layout,
            batch_size=settings.batch_size,
            negatives=settings.data.negatives,
            chunk_size=settings.chunk_size or 1,
        )


def _check_rules(settings: config.TrainConfig, problems: Problems) -> None:
    rules: Mapping[str, paths.Rules[Any]] = {
        "trainable": settings.trainable or (),
        "lora.targets": settings.lora.targets,
        "optimizer.learning_rates": settings.optimizer.learning_rates,
        "optimizer.weight_decays": settings.optimizer.weight_decays,
    }
    for key, patterns in rules.items():
        for pattern, _ in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                problems.add(f"config.{key}: {pattern!r} is no regular expression: {error}")


def _check_evaluation(
    settings: config.TrainConfig, folder: files.Path, made: Made, problems: Problems
) -> None:
    evaluation = settings.evaluation
    parts = {"mmeb": evaluation.mmeb, "composition": evaluation.composition}
    check_tasks(parts, evaluation.images, folder, made, problems)
    if isinstance(settings.loss, Distillation):
        check_texts(evaluation.texts, settings.data.columns, folder, made, problems)
    check_sets(settings.data.eval, settings.data.columns, folder, made, problems)


def _check_contrast(settings: config.TrainConfig, rows: Mapping[str, formats.Source]) -> None:
    """Raises ValueError if the only query of a contrastive run has no negative."""
    if sum(map(len, rows.values())) > 1 or not isinstance(settings.loss, Contrastive):
        return
    ((name, source),) = rows.items()
    if not schema.to_example(name, source[0]).negatives[: settings.data.negatives]:
        raise ValueError(
            f"config.data.train={settings.data.train!r} has a single row, without negatives that "
            "are read: a query is told apart from the targets of other rows, so there must be two."
        )


def _check_sources(settings: config.TrainConfig, names: Iterable[str]) -> None:
    """Raises ValueError if the loss treats a source in its own way that is not trained on."""
    of, loss = contrastive_part(settings.loss)
    if loss is None:
        return
    for key, wanted in (
        ("closed_sources", loss.closed_sources),
        ("source_temperatures", [name for name, _ in loss.source_temperatures]),
        ("graded_sources", loss.graded_sources),
    ):
        try:
            schema.check_names(wanted, names)
        except ValueError as error:
            raise ValueError(f"config.{of}.{key}: {error}") from error


def _check_scores(settings: config.TrainConfig, rows: Mapping[str, formats.Source]) -> None:
    """Raises ValueError for a source whose first row has no scores, where the loss needs them."""
    if not isinstance(settings.loss, JudgeDistillation):
        return
    for name, source in rows.items():
        try:
            scores = schema.to_example(name, source[0], "0").scores
        except BadExample:
            continue  # it will be left out; others may be good
        if not scores:
            raise ValueError(
                f"config.loss.objective={settings.loss.objective!r}, but the first row of source"
                f" {name!r} has no `scores`, a judge's of the positive and each negative: job judge"
                " (experiments/judge.py) writes rows that have them"
            )


def _check_grades(settings: config.TrainConfig, rows: Mapping[str, formats.Source]) -> None:
    """Raises ValueError for a graded source whose first row has no grade; warns of the opposite."""
    of, loss = contrastive_part(settings.loss)
    if loss is None:
        return
    for name, source in rows.items():
        try:
            grade = schema.to_example(name, source[0], "0").grade
        except BadExample:
            continue  # it will be left out; others may be good
        if name in loss.graded_sources and grade is None:
            raise ValueError(
                f"config.{of}.graded_sources has {name!r}, but its first row has no number as its"
                " `score`, which says how alike query and positive are; name its column by"
                " config.data.columns.score"
            )
        if name not in loss.graded_sources and grade is not None:
            logging.warning(
                "rows of source %r have a score, which is not used: all are trained as pairs that"
                " belong together. config.%s.graded_sources=(%r,) makes them graded pairs",
                name,
                of,
                name,
            )
