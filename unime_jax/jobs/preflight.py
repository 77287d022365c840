"""Preflight checks: problems that are cheap to see before anything is built, all listed at once.

What a run prepares itself, below `data.folder`, cannot be looked at yet and is left out.
"""

import contextlib
import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from unime_jax import backbones, config, files, paths
from unime_jax.backbones import Backbone, Processing
from unime_jax.backbones.io import tensor_files
from unime_jax.data import (
    embedding_store,
    formats,
    heads,
    items,
    mined_rows,
    mining_corpus,
    mixture,
    sampling,
    schema,
)
from unime_jax.data.pairs import open_pairs
from unime_jax.data.quarantine import BadExample
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import pair_shapes
from unime_jax.evaluation import benchmark_sets, retrieval_files
from unime_jax.evaluation.tasks import distillation
from unime_jax.export import merge_parts
from unime_jax.training import automatic, checkpoint, inputs, optimizer, resume, setup
from unime_jax.training.settings import (
    Contrastive,
    Distillation,
    JudgeDistillation,
    contrastive_part,
)


class Problems:
    """Errors that are collected, to be said in one."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextlib.contextmanager
    def collected(self, key: str = "") -> Iterator[None]:
        """Collects an error of its body, led by `key` unless the error names it."""
        try:
            yield
        except (ValueError, OSError) as error:
            said = str(error)
            self._found.append(said if not key or key in said else f"{key}: {said}")

    def add(self, problem: str) -> None:
        self._found.append(problem)

    def raise_any(self) -> None:
        """Raises ValueError if there are any."""
        if len(self._found) > 1:
            listed = "\n".join(f"- {problem}" for problem in self._found)
            raise ValueError(
                f"{len(self._found)} things are wrong, and nothing has been read or built yet:\n"
                f"{listed}"
            )
        if self._found:
            raise ValueError(self._found[0])


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


def check_training(settings: config.TrainConfig, workdir: files.Path, problems: Problems) -> None:
    """Backbone, data, evaluation data, schedule, rules and checkpoints' place of a training run."""
    with problems.collected():
        checkpoint.check_name(workdir)
    folder = files.as_path(settings.data.folder)
    made = _Made(folder, bool(settings.data.prepare.module))
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
        _check_module(settings.data.prepare.module, problems)
    _check_model(settings, made, problems)
    if not settings.data.train:
        problems.add("config.data.train is empty: name the training data, below config.data.folder")
    elif not made.later(folder / settings.data.train):
        with problems.collected("config.data.train"):
            rows = inputs.open_rows(settings.data)
            weights = inputs.weights_of(settings.data, rows)
            mixture.check(
                rows,
                weights,
                settings.batch_size,
                settings.data.source_run,
                jax.process_count(),
            )
            if settings.epochs:
                optimizer.check_schedule(settings.optimizer, automatic.steps_of(settings, rows))
            if settings.data.split_modalities:
                sampling.query_modalities(rows, weights)
            _check_contrast(settings, {name: rows[name] for name in weights})
            _check_sources(settings, weights)
            _check_scores(settings, {name: rows[name] for name in weights})
    _check_teacher(settings.data.teacher, folder, made, problems)
    _check_evaluation(settings, folder, made, problems)


def check_export(settings: config.TrainConfig, problems: Problems) -> None:
    """Backbone and data of an export."""
    folder = files.as_path(settings.data.folder)
    _check_model(settings, _Made(folder, False), problems)
    if settings.data.train:
        with problems.collected("config.data.train"):
            inputs.open_rows(settings.data)


def check_embedding(settings: config.EmbedConfig, problems: Problems) -> None:
    """Model and corpus of an embedding job."""
    with problems.collected("config.backbone"):
        _open(
            settings.backbone,
            settings.revision,
            settings.max_length,
            settings.processing,
            weights=True,
        )
    folder = files.as_path(settings.data.folder)
    if not settings.data.datasets and not settings.data.texts:
        problems.add("config.data.datasets and config.data.texts name nothing to embed")
    for name in settings.data.datasets:
        with problems.collected("config.data.datasets"):
            open_pairs(folder / name, settings.data.columns)
    for name in settings.data.texts:
        with problems.collected("config.data.texts"):
            items.check_file(folder / name)


def check_merge(settings: config.MergeConfig, workdir: files.Path, problems: Problems) -> None:
    """Models of a merge, and whether they are of one kind."""
    if jax.process_count() > 1:
        problems.add(
            f"job merge runs in one process, and there are {jax.process_count()}: start it without"
            " --distributed"
        )
    parts = []
    for key, sources in (("models", settings.models), ("base", (settings.base,))):
        for source in filter(None, sources):
            if files.resolved(files.as_path(source)) in (
                files.resolved(workdir),
                files.resolved(workdir / "hf"),
            ):
                problems.add(
                    f"config.{key}: {source} is where the merge is written; give another --workdir"
                )
                continue
            with problems.collected(f"config.{key}"):
                part = merge_parts.open_part(source, settings, weights=False)
                _check_weights(part.backbone)
                parts.append(part)
    if len(parts) == len(settings.models) + bool(settings.base):
        with problems.collected():
            base = parts.pop() if settings.base else None
            merge_parts.check_alike(parts, base)


def check_mining(settings: config.MineConfig, problems: Problems) -> None:
    """Model, rows and corpus of a mining job."""
    with problems.collected("config.backbone"):
        _open(
            settings.backbone,
            settings.revision,
            settings.max_length,
            settings.processing,
            weights=True,
        )
    data = settings.data
    folder = files.as_path(data.folder)
    if not data.train:
        problems.add("config.data.train is empty: name the rows to mine for, as of a training run")
    else:
        with problems.collected("config.data.train"):
            rows = open_pairs(folder / data.train, data.columns)
            schema.check_names(data.sources, rows)
            heads.heads(rows, data.first_rows, data.first_rows_by_source)
    if data.corpus:
        with problems.collected("config.data.corpus"):
            mining_corpus.open_corpus(folder / data.corpus, data.columns)
    if settings.search.guide:
        for side in ("queries", "candidates"):
            with problems.collected("config.search.guide"):
                embedding_store.check_folder(files.as_path(settings.search.guide) / side)


def check_judging(settings: config.JudgeConfig, problems: Problems) -> None:
    """Model and pairs of a judging job."""
    with problems.collected("config.backbone"):
        backbone = _open(
            settings.backbone,
            settings.revision,
            settings.max_length,
            settings.processing,
            weights=True,
        )
        if backbone.lm_head is None:
            backbones.with_lm_head(backbone)  # says which families have a head
    if not settings.data.train:
        problems.add(
            "config.data.train is empty: name the pairs to judge, below config.data.folder"
        )
        return
    with problems.collected("config.data.train"):
        path = files.as_path(settings.data.folder) / settings.data.train
        sources = open_pairs(path, settings.data.columns)
        rows = {name: len(source) for name, source in sources.items()}
        if not any(rows.values()):
            problems.add(f"config.data.train: there is no row in {path}")
            return
        if settings.data.mined:
            with problems.collected("config.data.mined"):
                folder, data = files.as_path(settings.data.folder), settings.data
                mined_rows.join(sources, rows, data.mined, folder, data.columns, data.mined_use)


def check_evaluation(settings: config.EvaluateConfig, source: str, problems: Problems) -> None:
    """Model and data of an evaluation job; `source` is the folder or hub id of the model."""
    with problems.collected("config.backbone"):
        _open(source, settings.revision, settings.max_length, settings.processing, weights=True)
    check_evaluation_data(settings, problems)


def check_evaluation_data(settings: config.EvaluateConfig, problems: Problems) -> None:
    """Data of an evaluation job."""
    folder = files.as_path(settings.data.folder)
    made = _Made(folder, bool(settings.data.prepare.module))
    if settings.data.prepare.module:
        _check_module(settings.data.prepare.module, problems)
    evaluation = settings.evaluation
    parts = {"mmeb": evaluation.mmeb, "composition": evaluation.composition}
    _check_tasks(parts, evaluation.images, folder, made, problems)
    _check_texts(evaluation.texts, settings.data.columns, folder, made, problems)
    _check_sets(settings.data.eval, settings.data.columns, folder, made, problems)
    _check_benchmarks(evaluation, folder, made, problems)
    _check_teacher(settings.data.teacher, folder, made, problems)


@dataclasses.dataclass(frozen=True)
class _Made:
    """Files that a run makes itself, below a folder, if it prepares any."""

    folder: files.Path
    prepares: bool

    def later(self, path: files.Path) -> bool:
        """True if the run itself may still make this path."""
        inside = files.resolved(path).is_relative_to(files.resolved(self.folder))
        return self.prepares and inside and not path.exists()


def _check_model(settings: config.TrainConfig, made: _Made, problems: Problems) -> None:
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
        backbone = _open(source, revision, longest, settings.processing, weights=weights)
        # Buckets that are chosen by the data stand in for a moment.
        pair_shapes(
            settings.data.buckets or (Bucket(tokens=1, tiles=0),),
            backbone.layout,
            batch_size=settings.batch_size,
            negatives=settings.data.negatives,
            chunk_size=settings.chunk_size or 1,
        )


def _open(
    source: str,
    revision: str | None,
    max_length: int | None,
    processing: Processing | None,
    *,
    weights: bool,
) -> Backbone:
    """The model without its weights; of a folder it is looked whether they are there."""
    backbone = backbones.open_backbone(
        source, max_length=max_length, revision=revision, processing=processing, weights=False
    )
    if weights:
        _check_weights(backbone)
    return backbone


def _check_weights(backbone: Backbone) -> None:
    """Raises ValueError for a folder without weights; a hub's have not been asked for."""
    base = pathlib.Path(backbone.base)
    if base.is_dir() and not tensor_files.checkpoint_files(base):
        raise ValueError(
            f"{base} holds no {tensor_files.SINGLE} or {tensor_files.INDEX}. Download the whole "
            "repository, or convert pickled weights to safetensors; a training run that is to "
            'start from scratch has config.init="random".'
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


def _check_module(module: str, problems: Problems) -> None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of a package above it
        spec = None
    if spec is None:
        problems.add(
            f'config.data.prepare.module={module!r}: there is no such module; "" prepares nothing'
        )


def _check_evaluation(
    settings: config.TrainConfig, folder: files.Path, made: _Made, problems: Problems
) -> None:
    evaluation = settings.evaluation
    parts = {"mmeb": evaluation.mmeb, "composition": evaluation.composition}
    _check_tasks(parts, evaluation.images, folder, made, problems)
    if isinstance(settings.loss, Distillation):
        _check_texts(evaluation.texts, settings.data.columns, folder, made, problems)
    _check_sets(settings.data.eval, settings.data.columns, folder, made, problems)


def _check_texts(
    name: str,
    columns: Mapping[str, str],
    folder: files.Path,
    made: _Made,
    problems: Problems,
) -> None:
    """The held-out texts of a distillation; "": none."""
    if name and not made.later(folder / name):
        with problems.collected("config.evaluation.texts"):
            distillation.open_texts(folder / name, columns)


def _check_sets(
    name: str,
    columns: Mapping[str, str],
    folder: files.Path,
    made: _Made,
    problems: Problems,
) -> None:
    """The retrieval sets of `data.eval`; "": none."""
    if name and not made.later(folder / name):
        with problems.collected("config.data.eval"):
            retrieval_files.open_sets(folder / name, columns)


def _check_benchmarks(
    evaluation: config.TasksConfig, folder: files.Path, made: _Made, problems: Problems
) -> None:
    """The folder of prepared benchmark sets; a set that is not there is none of the problems."""
    name = evaluation.benchmarks
    if name and not made.later(folder / name):
        with problems.collected("config.evaluation.benchmarks"):
            benchmark_sets.check_folder(folder / name)


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


def _check_teacher(name: str, folder: files.Path, made: _Made, problems: Problems) -> None:
    """The folder of a teacher's embeddings; "": none."""
    if name and not made.later(folder / name):
        with problems.collected("config.data.teacher"):
            embedding_store.check_folder(folder / name)


def _check_tasks(
    parts: Mapping[str, str],
    images: str,
    folder: pathlib.Path,
    made: _Made,
    problems: Problems,
) -> None:
    """Folders of the tasks by key of `config.evaluation`, "": none, and of their images."""
    for key, name in parts.items():
        if name and not made.later(folder / name):
            with problems.collected(f"config.evaluation.{key}"):
                formats.open_dataset(folder / name)
    pictured = bool(parts["mmeb"] or parts["composition"])
    if pictured and not made.later(folder / images) and not (folder / images).is_dir():
        problems.add(f"config.evaluation.images: there is no folder {folder / images}")
