"""Evaluate a model apart from training: scores, a report, and what is done survives a kill.

A dataset's result is on disk as soon as it is finished; the same command goes on with the others.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float32
from ml_collections import ConfigDict

from unime_jax import config, config_reader, files, sharding
from unime_jax.backbones import Backbone, open_backbone
from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import Item
from unime_jax.data.embedding_store import Embeddings, open_embeddings
from unime_jax.data.formats import fingerprint
from unime_jax.embedder import Embedder
from unime_jax.encode import Encoder, NonFiniteError, encode_blocks
from unime_jax.evaluation import finished, headline, image_files, report, scores, tasks
from unime_jax.evaluation.shared_encoder import SharedEncoder
from unime_jax.evaluation.suite import Key, Suite, make_suite, rankings, retrievals, summary
from unime_jax.evaluation.tasks import distillation, retrieval
from unime_jax.jobs import boundary, preflight
from unime_jax.models.inference import default_execution
from unime_jax.operations import compilation_cache, watchdog
from unime_jax.operations.watchdog import Watchdog
from unime_jax.training import resume
from unime_jax.training.inputs import prepare
from unime_jax.training.setup import say_what_is_not_used, write_config


def run(config_dict: ConfigDict, workdir: files.Path) -> None:
    """Begins or resumes the evaluation in `workdir`.

    Raises:
      ValueError: the config does not make sense, `workdir` holds a run of another job or the
        evaluation of another model or other data, or a dataset is not complete.
      RuntimeError: a disk takes no more.
    """
    settings = config_reader.read(config.EvaluateConfig, config_dict.to_dict())
    folder = files.as_path(settings.data.folder)
    watch = settings.watchdog
    stacks = workdir / f"stacks-evaluate-{jax.process_index()}.txt"
    with (
        Watchdog(stacks, seconds=watch.evaluation_seconds, exit=watch.exit),
        contextlib.ExitStack() as stack,
    ):
        with watchdog.phase("the set-up has not gone on", watch.setup_seconds):
            mesh = preflight.check(
                lambda: _make_mesh(settings),
                workdir,
                lambda problems: _check(settings, workdir, problems),
            )
        stack.enter_context(boundary.owning(workdir, "evaluate.lock", "evaluates in", folder))
        compilation_cache.use_for_job(settings.compilation_cache, workdir)
        prepare(settings.data.prepare, folder)
        with watchdog.phase("the set-up has not gone on", watch.setup_seconds):
            suite = _open_suite(settings, folder)
            backbone = _open_backbone(settings)
            _check_same(settings, folder, backbone, suite, workdir)
            write_config(workdir, config_dict)
        with watchdog.phase("the evaluation has not gone on", watch.evaluation_seconds):
            results = _results(settings, suite, backbone, mesh, workdir)
        if jax.process_index() == 0:
            _leave(settings, suite, results, workdir)


def model_source(backbone: str) -> str:
    """The folder or hub id of a model: of a training run's work directory that of its export.

    Raises:
      ValueError: a work directory without an export.
    """
    folder = files.as_path(backbone)
    if (folder / "hf" / "self_check.json").exists():
        return str(folder / "hf")
    if (folder / "checkpoints").is_dir():
        raise ValueError(
            f"config.backbone={backbone}: this work directory has no exported model in hf/. Let "
            "the run finish, or export its newest checkpoint with --config.job=export."
        )
    return backbone


def _check(
    settings: config.EvaluateConfig, workdir: files.Path, problems: preflight.Problems
) -> None:
    with problems.collected("--workdir"):
        _check_workdir(workdir)
    source = ""
    with problems.collected("config.backbone"):
        source = model_source(settings.backbone)
    if source:
        preflight.check_evaluation(settings, source, problems)


def _check_workdir(workdir: files.Path) -> None:
    path = workdir / "config.json"
    if path.exists() and (job := files.read_object(path).get("job")) != "evaluate":
        raise ValueError(
            f"--workdir={workdir} holds a run of job {job!r}. An evaluation has a work directory of"
            " its own; a run's model is evaluated by --config.backbone=<its work directory>."
        )


def _make_mesh(settings: config.EvaluateConfig) -> Mesh:
    """Over the devices of all processes."""
    sizes = settings.mesh
    return sharding.make_mesh(sizes.data, sizes.fsdp, sizes.tensor)


def _open_suite(settings: config.EvaluateConfig, folder: files.Path) -> Suite:
    chosen, data = settings.evaluation, settings.data
    agreement = None
    if chosen.texts:
        teacher = open_embeddings(folder / data.teacher)
        agreement = distillation.Task(
            folder / chosen.texts, teacher, data.suffix, chosen.agreement, data.columns
        )
    return make_suite(
        folder,
        mmeb_folder=chosen.mmeb,
        composition_folder=chosen.composition,
        images=chosen.images,
        image_prompt=chosen.image_prompt,
        limit=chosen.limit,
        agreement=agreement,
        retrieval_data=data.eval,
        columns=data.columns,
    )


def _open_backbone(settings: config.EvaluateConfig) -> Backbone:
    source = model_source(settings.backbone)
    backbone = open_backbone(
        source,
        max_length=settings.max_length,
        revision=settings.revision if source == settings.backbone else None,
        processing=settings.processing,
    )
    defaults = backbone.defaults
    say_what_is_not_used(source, defaults, defaults.max_length)
    return backbone


def _check_same(
    settings: config.EvaluateConfig,
    folder: files.Path,
    backbone: Backbone,
    suite: Suite,
    workdir: files.Path,
) -> None:
    """See `finished.check_same`; all processes read the backbone's files, process 0 compares."""
    chosen = settings.evaluation
    names = {"mmeb": chosen.mmeb, "composition": chosen.composition}
    provenance: dict[str, Any] = {
        "model": resume.fingerprints(backbone)["backbone"],
        "processing": dataclasses.asdict(backbone.processing),
        "max_length": backbone.preprocess.prompt.max_length,
        "dtype": settings.dtype,
        "image_prompt": chosen.image_prompt,
        "limit": chosen.limit,
        **{key: [name, fingerprint(folder / name)] for key, name in names.items() if name},
    }
    if name := settings.data.eval:
        provenance |= {
            "eval": [name, fingerprint(folder / name)],
            "columns": dict(settings.data.columns),
        }
    for task in suite.tasks:
        if isinstance(task, distillation.Task):
            provenance |= {
                "texts": [chosen.texts, fingerprint(task.folder)],
                "columns": dict(task.columns),
                "teacher": [settings.data.teacher, _digest_of_teacher(task.teacher)],
                "suffix": task.suffix,
                "agreement": dataclasses.asdict(task.measure),
            }
    if jax.process_index() == 0:
        finished.check_same(workdir, provenance | _images(settings, folder, suite))


def _images(settings: config.EvaluateConfig, folder: files.Path, suite: Suite) -> dict[str, Any]:
    """Fingerprints of the image files that results depend on."""
    chosen = settings.evaluation
    found: dict[str, Any] = {}
    if chosen.mmeb or chosen.composition:
        found["images"] = [chosen.images, image_files.of_folder(folder / chosen.images)]
    if sets := [task.data for task in suite.tasks if isinstance(task, retrieval.Task)]:
        found["eval_images"] = image_files.of_sets(sets, chosen.limit)
    return found


def _digest_of_teacher(teacher: Embeddings) -> str:
    """Hash of which items a teacher has embedded, and of what is recorded of it."""
    record = json.dumps([teacher.dimension, teacher.provenance], sort_keys=True)
    content = teacher.ids.tobytes() + record.encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _results(
    settings: config.EvaluateConfig,
    suite: Suite,
    backbone: Backbone,
    mesh: Mesh,
    workdir: files.Path,
) -> dict[Key, Any]:
    """Results of all tasks, in process 0; each is on disk before the next begins."""
    first = jax.process_index() == 0
    results = finished.load(workdir, suite.tasks) if first else {}
    missing = _missing(suite, results)
    if len(missing) < len(suite.tasks):
        logging.info("%d of %d datasets are done", len(results), len(suite.tasks))
    if not missing:
        return results
    with jax.set_mesh(mesh):
        embedder = Embedder(
            backbone,
            mesh=mesh,
            dtype=jnp.dtype(settings.dtype),
            execution=default_execution(jnp.dtype(settings.dtype)),
            truncate_dim=backbone.dimension,
        )
        encode = SharedEncoder(_encoder(backbone, embedder, settings.batch_size))
        started = time.perf_counter()
        for task, result in tasks.run_all(missing, suite.images(), encode):
            logging.info("%s is done after %.1f s", task, time.perf_counter() - started)
            results[task.kind, task.name] = result
            if first:
                finished.save(workdir, task, result)
    return results


def _missing(suite: Suite, results: dict[Key, Any]) -> list[tasks.Task]:
    """The tasks that process 0 has no result of, for all processes alike."""
    missing = np.array([(task.kind, task.name) not in results for task in suite.tasks])
    if jax.process_count() > 1:
        missing = np.asarray(multihost_utils.broadcast_one_to_all(missing))
    return [task for task, is_missing in zip(suite.tasks, missing) if is_missing]


def _encoder(backbone: Backbone, embedder: Embedder, batch_size: int) -> Encoder:
    """Whole embeddings of items as they are, in batches of a few shapes."""

    def encode(items: Sequence[Item]) -> Float32[np.ndarray, "n D"]:
        blocks = encode_blocks(
            embedder.model,
            items,
            backbone.preprocess,
            embedder.shapes(batch_size),
            window=batch_size,
        )
        try:
            (encoded,) = blocks
        except NonFiniteError as error:
            raise ValueError(error.of(name_of(items[error.rows[0]]))) from error
        return encoded.vectors

    return encode


def _leave(
    settings: config.EvaluateConfig,
    suite: Suite,
    results: dict[Key, Any],
    workdir: files.Path,
) -> None:
    """Writes evaluation.json and report.html, and logs the scores."""
    found = summary(suite, {(t.kind, t.name): results[t.kind, t.name] for t in suite.tasks})
    scores.write_scores(workdir, "scores", found)
    path = report.write_report(
        workdir,
        table=suite.table,
        before=None,
        after=rankings(results),
        images=suite.images(),
        title=f"Evaluation of {settings.backbone}",
        headline=headline.of_evaluation(settings),
        composition_rows=suite.composition_rows,
        retrieval={"after": retrievals(results)},
    )
    logging.info("%s\n\n%s\n\nreport: %s", workdir, scores.table(None, found, "score"), path)
