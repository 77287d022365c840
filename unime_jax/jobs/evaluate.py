"""Evaluate a model apart from training: scores, a report, and what is done survives a kill.

A dataset's result is on disk as soon as it is finished; the same command goes on with the others.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unime_jax import config, config_reader, files, sharding
from unime_jax.backbones import Backbone
from unime_jax.data.embedding_store import open_embeddings
from unime_jax.evaluation import score_table, scores, tasks
from unime_jax.evaluation.benchmarks.sets import said
from unime_jax.evaluation.peer import Peer
from unime_jax.evaluation.report import headline
from unime_jax.evaluation.report import page as report
from unime_jax.evaluation.stored import finished, provenance
from unime_jax.evaluation.suite import (
    Key,
    Suite,
    caption_rankings,
    compositions,
    make_suite,
    rankings,
    retrievals,
    summary,
)
from unime_jax.evaluation.tasks import distillation
from unime_jax.evaluation.tasks import viewed as viewed_task
from unime_jax.evaluation.tasks.viewed import WHOLE
from unime_jax.evaluation.views import Views
from unime_jax.jobs import boundary, evaluated_model, preflight, preflight_models
from unime_jax.jobs.common_checks import Problems
from unime_jax.operations import compilation_cache, watchdog
from unime_jax.operations.config_file import write_config
from unime_jax.operations.watchdog import Watchdog
from unime_jax.training.inputs import prepare


def run(config_dict: ConfigDict, workdir: files.Path, peer: Peer | None = None) -> None:
    """Begins or resumes the evaluation in `workdir`.

    Args:
      peer: a model of another library in the place of `config.backbone`, of which the keys that
        are of a model are not used.

    Raises:
      ValueError: the config does not make sense, `workdir` holds a run of another job or the
        evaluation of another model or other data, or a dataset is not complete.
      RuntimeError: a disk takes no more.
    """
    if peer is not None:
        config_dict = ConfigDict(config_dict.to_dict() | {"backbone": peer.name})
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
                lambda problems: _check(settings, workdir, peer, problems),
            )
        stack.enter_context(boundary.owning(workdir, "evaluate.lock", "evaluates in", folder))
        compilation_cache.use_for_job(settings.compilation_cache, workdir)
        prepare(settings.data.prepare, folder)
        with watchdog.phase("the set-up has not gone on", watch.setup_seconds):
            suite = _open_suite(settings, folder)
            _check_everywhere(suite)
            model = peer or evaluated_model.open_model(settings)
            of_model = evaluated_model.provenance_of(settings, model)
            if jax.process_index() == 0:
                sets = {prepared.name: prepared.provenance() for prepared in suite.benchmarks}
                of_data = provenance.of_data(settings, folder, suite)
                finished.check_same(workdir, of_model | of_data, sets)
            write_config(workdir, config_dict)
        with watchdog.phase("the evaluation has not gone on", watch.evaluation_seconds):
            results = _results(settings, suite, model, of_model, mesh, workdir)
        if jax.process_index() == 0:
            about = headline.of_evaluation(
                settings, model.headline if isinstance(model, Peer) else None
            )
            _leave(settings, suite, results, workdir, about, model.dimension)


def _check(
    settings: config.EvaluateConfig,
    workdir: files.Path,
    peer: Peer | None,
    problems: Problems,
) -> None:
    with problems.collected("--workdir"):
        _check_workdir(workdir)
    if peer is not None or settings.library != "unime_jax":
        if jax.process_count() > 1:
            problems.add("models of other libraries are evaluated in one process, not in several")
        if peer is None:
            with problems.collected("config.backbone"):
                evaluated_model.check_peer(settings)
        preflight_models.check_evaluation_data(settings, problems)
        return
    source = ""
    with problems.collected("config.backbone"):
        source = evaluated_model.model_source(settings.backbone)
    if source:
        preflight_models.check_evaluation(settings, source, problems)


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
        instructions=chosen.instructions,
        composition_folder=chosen.composition,
        images=chosen.images,
        image_prompt=chosen.image_prompt,
        limit=chosen.limit,
        agreement=agreement,
        retrieval_data=data.eval,
        columns=data.columns,
        caption_prompt=chosen.caption_prompt,
        video_prompt=chosen.video_prompt,
        benchmark_folder=chosen.benchmarks,
        benchmark_names=chosen.sets,
        views=Views(chosen.dims, chosen.precisions),
    )


def _check_everywhere(suite: Suite) -> None:
    """Raises ValueError where this process has other tasks than process 0 has.

    Each looks at benchmark sets by itself, and a folder may not be the same on all hosts.
    """
    if jax.process_count() == 1:
        return
    names = json.dumps([(task.kind, task.name) for task in suite.tasks])
    own = np.frombuffer(hashlib.blake2b(names.encode(), digest_size=16).digest(), np.uint8)
    if not np.array_equal(multihost_utils.broadcast_one_to_all(own), own):
        reasons = f" Here are not run:\n{said(suite.not_run)}" if suite.not_run else ""
        raise ValueError(
            f"process {jax.process_index()} has other evaluation data than process 0; all need the "
            f"same.{reasons}"
        )


def _results(
    settings: config.EvaluateConfig,
    suite: Suite,
    model: Backbone | Peer,
    of_model: Mapping[str, Any],
    mesh: Mesh,
    workdir: files.Path,
) -> dict[Key, dict[str, Any]]:
    """Results of all tasks by view, in process 0; each is on disk before the next begins."""
    first = jax.process_index() == 0
    wanted = (WHOLE, *suite.views.names)
    results = finished.load(workdir, suite.tasks, wanted) if first else {}
    missing = _missing(suite, results)
    if len(missing) < len(suite.tasks):
        logging.info("%d of %d datasets are done", len(results), len(suite.tasks))
    if not missing:
        return results
    with jax.set_mesh(mesh):
        encode = evaluated_model.make_encoder(settings, model, of_model, mesh)
        started = time.perf_counter()
        viewed = [viewed_task.Task(task, suite.views) for task in missing]
        for task, by_view in tasks.run_all(viewed, suite.images(), encode):
            logging.info("%s is done after %.1f s", task, time.perf_counter() - started)
            results[task.kind, task.name] = by_view
            if first:
                finished.save(workdir, task, by_view)
    return results


def _missing(suite: Suite, results: Mapping[Key, Any]) -> list[tasks.Task]:
    """The tasks that process 0 has no result of, for all processes alike."""
    missing = np.array([(task.kind, task.name) not in results for task in suite.tasks])
    if jax.process_count() > 1:
        missing = np.asarray(multihost_utils.broadcast_one_to_all(missing))
    return [task for task, is_missing in zip(suite.tasks, missing) if is_missing]


def _leave(
    settings: config.EvaluateConfig,
    suite: Suite,
    by_view: dict[Key, dict[str, Any]],
    workdir: files.Path,
    about: Mapping[str, str],
    dimension: int | None,
) -> None:
    """Writes evaluation.json and report.html, whose headline is `about`, and logs the scores.

    `dimension`: of the model, None: unknown.
    """
    in_order = {(t.kind, t.name): by_view[t.kind, t.name] for t in suite.tasks}
    found = summary(suite, in_order, dimension)
    results = {key: of[WHOLE] for key, of in by_view.items()}
    composed = compositions(results)
    scores.write_scores(workdir, "scores", found)
    path = report.write_report(
        workdir,
        table=suite.table,
        before=None,
        after=rankings(results),
        images=suite.images(),
        title=f"Evaluation of {settings.backbone}",
        headline=about,
        composition_rows={name: score.rows for name, score in composed.items()},
        composition_sets={
            name: score.chance
            for name, score in composed.items()
            if name not in suite.composition_rows
        },
        retrieval={"after": retrievals(results) | caption_rankings(results)},
    )
    logging.info("%s\n\n%s\n\nreport: %s", workdir, score_table.table(None, found, "score"), path)
    if suite.not_run:
        logging.warning("benchmark sets that were not run:\n%s", said(suite.not_run))
