"""Evaluate a model apart from training: scores, a report, and what is done survives a kill.

A dataset's result is on disk as soon as it is finished; the same command goes on with the others.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import time
from collections.abc import Iterator, Mapping, Sequence
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
from unime_jax.encode import NonFiniteError, encode_blocks
from unime_jax.evaluation import (
    finished,
    headline,
    image_files,
    report,
    scores,
    tasks,
    vector_cache,
)
from unime_jax.evaluation.benchmark_sets import said
from unime_jax.evaluation.cached_encoder import CachedEncoder, EncodeBlocks
from unime_jax.evaluation.peer import Peer
from unime_jax.evaluation.shared_encoder import SharedEncoder
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
from unime_jax.evaluation.tasks import distillation, retrieval
from unime_jax.evaluation.tasks.captions import CAPTION
from unime_jax.jobs import boundary, preflight
from unime_jax.models.inference import default_execution
from unime_jax.operations import compilation_cache, watchdog
from unime_jax.operations.watchdog import Watchdog
from unime_jax.training import resume
from unime_jax.training.inputs import prepare
from unime_jax.training.setup import say_what_is_not_used, write_config


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
            model = peer or _open_model(settings)
            provenance = _provenance(settings, model)
            _check_same(settings, folder, provenance, suite, workdir)
            write_config(workdir, config_dict)
        with watchdog.phase("the evaluation has not gone on", watch.evaluation_seconds):
            results = _results(settings, suite, model, provenance, mesh, workdir)
        if jax.process_index() == 0:
            about = headline.of_evaluation(
                settings, model.headline if isinstance(model, Peer) else None
            )
            _leave(settings, suite, results, workdir, about)


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
    settings: config.EvaluateConfig,
    workdir: files.Path,
    peer: Peer | None,
    problems: preflight.Problems,
) -> None:
    with problems.collected("--workdir"):
        _check_workdir(workdir)
    if peer is not None or settings.library != "unime_jax":
        if jax.process_count() > 1:
            problems.add("models of other libraries are evaluated in one process, not in several")
        if peer is None:
            with problems.collected("config.backbone"):
                _check_peer(settings)
        preflight.check_evaluation_data(settings, problems)
        return
    source = ""
    with problems.collected("config.backbone"):
        source = model_source(settings.backbone)
    if source:
        preflight.check_evaluation(settings, source, problems)


def _check_peer(settings: config.EvaluateConfig) -> None:
    """Raises ValueError for a folder, or an installation, without sentence-transformers."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ValueError(
            f"config.library={settings.library!r}, but the package sentence-transformers is not "
            "installed: pip install 'unime_jax[eval]'"
        )
    from unime_jax.integrations import sentence_transformers

    sentence_transformers.check_folder(model_source(settings.backbone), settings.revision)


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
        benchmark_folder=chosen.benchmarks,
        benchmark_names=chosen.sets,
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


def _open_model(settings: config.EvaluateConfig) -> Backbone | Peer:
    source = model_source(settings.backbone)
    if settings.library != "unime_jax":
        from unime_jax.integrations import sentence_transformers  # torch is not for everybody

        assert settings.dtype != "int8"  # see EvaluateConfig
        return sentence_transformers.open_peer(
            source,
            revision=settings.revision,
            max_length=settings.max_length,
            dtype=settings.dtype,
            batch_size=settings.batch_size,
            late_fusion=settings.late_fusion,
        )
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
    model: Mapping[str, Any],
    suite: Suite,
    workdir: files.Path,
) -> None:
    """See `finished.check_same`; process 0 compares. `model`: of `_provenance`."""
    chosen = settings.evaluation
    names = {"mmeb": chosen.mmeb, "composition": chosen.composition}
    provenance: dict[str, Any] = {
        **model,
        "image_prompt": chosen.image_prompt,
        "limit": chosen.limit,
        "instructions": chosen.instructions,
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
    if chosen.caption_prompt != CAPTION:
        provenance["caption_prompt"] = chosen.caption_prompt
    sets = {prepared.name: prepared.provenance() for prepared in suite.benchmarks}
    if jax.process_index() == 0:
        finished.check_same(workdir, provenance | _images(settings, folder, suite), sets)


def _provenance(settings: config.EvaluateConfig, model: Backbone | Peer) -> Mapping[str, Any]:
    """All that the embeddings of a model depend on."""
    if isinstance(model, Peer):
        return model.provenance
    return {
        "model": resume.fingerprints(model)["backbone"],
        "processing": dataclasses.asdict(model.processing),
        "max_length": model.preprocess.prompt.max_length,
        "dtype": settings.dtype,
    }


def _images(settings: config.EvaluateConfig, folder: files.Path, suite: Suite) -> dict[str, Any]:
    """Fingerprints of the image files that results depend on."""
    chosen = settings.evaluation
    found: dict[str, Any] = {}
    if chosen.mmeb or chosen.composition:
        found["images"] = [chosen.images, image_files.of_folder(folder / chosen.images)]
    prepared = {known.name for known in suite.benchmarks}  # whole, and never changed
    own = [t.data for t in suite.tasks if isinstance(t, retrieval.Task) and t.name not in prepared]
    if own:
        found["eval_images"] = image_files.of_sets(own, chosen.limit)
    return found


def _digest_of_teacher(teacher: Embeddings) -> str:
    """Hash of which items a teacher has embedded, and of what is recorded of it."""
    record = json.dumps([teacher.dimension, teacher.provenance], sort_keys=True)
    content = teacher.ids.tobytes() + record.encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _results(
    settings: config.EvaluateConfig,
    suite: Suite,
    model: Backbone | Peer,
    provenance: Mapping[str, Any],
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
        if isinstance(model, Peer):
            encode = SharedEncoder(model.encode)
        else:
            encode = _encoder(settings, model, provenance, mesh)
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


def _encoder(
    settings: config.EvaluateConfig,
    backbone: Backbone,
    provenance: Mapping[str, Any],
    mesh: Mesh,
) -> SharedEncoder:
    """Encoder of all tasks, which has its memory on disk, or where there is none in the process."""
    embedder = Embedder(
        backbone,
        mesh=mesh,
        dtype=jnp.dtype(settings.dtype),
        execution=default_execution(jnp.dtype(settings.dtype)),
        truncate_dim=backbone.dimension,
    )
    encode = _encode_blocks(backbone, embedder, settings.batch_size)
    setting = settings.evaluation.cache
    if not setting:
        return SharedEncoder(lambda items: np.concatenate(list(encode(items, len(items)))))
    cache = None
    if jax.process_index() == 0:
        cache = vector_cache.open_cache(setting, provenance, embedder.dimension)
    return SharedEncoder(CachedEncoder(encode, cache, embedder.dimension), limit=0)


def _encode_blocks(backbone: Backbone, embedder: Embedder, batch_size: int) -> EncodeBlocks:
    """Whole embeddings of items as they are, in batches of a few shapes."""

    def encode(items: Sequence[Item], block: int) -> Iterator[Float32[np.ndarray, "m D"]]:
        blocks = encode_blocks(
            embedder.model,
            items,
            backbone.preprocess,
            embedder.shapes(batch_size),
            window=batch_size,
            block=block,
        )
        try:
            for encoded in blocks:
                yield encoded.vectors
        except NonFiniteError as error:
            raise ValueError(error.of(name_of(items[error.rows[0]]))) from error

    return encode


def _leave(
    settings: config.EvaluateConfig,
    suite: Suite,
    results: dict[Key, Any],
    workdir: files.Path,
    about: Mapping[str, str],
) -> None:
    """Writes evaluation.json and report.html, whose headline is `about`, and logs the scores."""
    found = summary(suite, {(t.kind, t.name): results[t.kind, t.name] for t in suite.tasks})
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
    logging.info("%s\n\n%s\n\nreport: %s", workdir, scores.table(None, found, "score"), path)
    if suite.not_run:
        logging.warning("benchmark sets that were not run:\n%s", said(suite.not_run))
