"""Train an embedder, evaluate it before and after, and leave a report and Hugging Face weights."""

import contextlib
import dataclasses
import importlib
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unime_jax import backbones, config, export, loop, optimizer, paths, sharding, state, step
from unime_jax.batch import Item
from unime_jax.checkpoint import Checkpoints
from unime_jax.data import loader, pack, quarantine, sources
from unime_jax.encode import Encoder, make_encoder
from unime_jax.evaluation import mmeb, report, scores, suite
from unime_jax.models.vlm import Execution


def run(config_dict: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs or resumes the training in `workdir`.

    Raises:
      ValueError: the config does not make sense; nothing has been trained then.
      RuntimeError: too many non-finite steps in a row, or an export that fails its check.
    """
    settings = config.read(config.TrainConfig, config_dict.to_dict())
    mesh = sharding.make_mesh(settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor)
    _check_sizes(settings, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    _write_config(workdir, config_dict)
    folder = pathlib.Path(settings.data.folder).expanduser()
    _prepare(settings.data.prepare, folder)
    with jax.set_mesh(mesh):
        _train(settings, mesh, workdir, folder)


def _train(
    settings: config.TrainConfig, mesh: Mesh, workdir: pathlib.Path, folder: pathlib.Path
) -> None:
    largest = settings.data.buckets[-1]
    backbone = backbones.open_backbone(
        settings.backbone, max_length=largest[0], processing=settings.processing
    )
    execution = Execution(
        jnp.dtype(settings.execution.dtype), settings.execution.remat, settings.execution.attention
    )
    blueprint = state.draw(
        backbone,
        mesh,
        adapters=settings.lora,
        trainable=settings.trainable,
        frozen_dtype=jnp.dtype(settings.execution.frozen_dtype),
    )
    encode = step.make_encode(blueprint.graph, execution)
    optimize = optimizer.make_optimizer(settings.optimizer, settings.steps, blueprint.trainable)
    schedule = optimizer.make_schedule(settings.optimizer, settings.steps)
    buckets = [pack.Bucket(*bucket) for bucket in settings.data.buckets]
    plan = pack.pair_plan(
        buckets,
        backbone.layout,
        batch_size=settings.batch_size,
        negatives=settings.data.negatives,
        chunk_size=settings.chunk_size,
    )
    rows = sources.open_dataset(folder / settings.data.train)
    data = loader.make_loader(
        rows,
        settings.data.weights or dict.fromkeys(rows, 1.0),
        batch_size=settings.batch_size,
        homogeneous=settings.data.homogeneous,
        seed=settings.seed,
        preprocess=backbone.preprocess,
        plan=plan,
        workers=settings.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    def initial() -> paths.Parameters:
        return state.make_parameters(
            backbone, blueprint, adapters=settings.lora, init=settings.init, seed=settings.seed
        )

    table = state.parameter_table(blueprint)
    logging.info("parameters:\n%s", table)
    if jax.process_index() == 0:
        (workdir / "parameters.txt").write_text(table + "\n")
    now = state.make_state(blueprint, initial(), optimize, mesh)
    tests = suite.open_suite(settings.evaluation, folder)
    test_plan = pack.Plan(
        tuple(buckets), backbone.layout, settings.chunk_size, settings.evaluation.rows
    )

    def encoder_of(trainable: paths.Parameters, frozen: paths.Parameters) -> Encoder:
        return make_encoder(encode, (trainable, frozen), backbone.preprocess, test_plan, mesh)

    with (
        contextlib.closing(data),
        Checkpoints(
            workdir / "checkpoints", every=settings.checkpoint.every, keep=settings.checkpoint.keep
        ) as checkpoints,
    ):
        if checkpoints.latest_step() is not None:
            now = checkpoints.restore(now, data)
            logging.info("resuming %s after step %d", workdir, int(now.step))
        train_step = jax.jit(
            step.make_train_step(
                encode,
                optimize,
                schedule,
                settings.loss,
                recompute=settings.execution.recompute,
                infonce_steps=settings.infonce_steps,
            ),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda x: x.sharding, now), sharding.replicated(mesh)),
        )
        now = loop.run(settings, mesh, workdir, train_step, now, data, checkpoints)
        if int(now.step) < settings.steps:
            return  # told to stop; the same command goes on from here

    if "before" not in scores.read_scores(workdir):
        # The start follows from the config, so it is made again rather than kept, and the first
        # step need not wait for an evaluation.
        trainable = blueprint.part(initial(), trainable=True)
        _evaluate(tests, encoder_of(trainable, now.frozen), workdir, "before")
    encoder = encoder_of(now.trainable, now.frozen)
    _evaluate(tests, encoder, workdir, "after")
    export.export(
        workdir / "hf",
        backbone,
        blueprint.graph,
        now.trainable | now.frozen,
        dtype=np.dtype(settings.export_dtype),
    )
    export.self_check(
        workdir / "hf",
        _examples(rows, backbone.preprocess, plan),
        encoder,
        plan=test_plan,
        mesh=mesh,
        execution=execution,
        max_length=largest[0],
        dtype=np.dtype(settings.export_dtype),
    )
    if jax.process_index() == 0:
        _write_report(settings, workdir, tests)


def _check_sizes(settings: config.TrainConfig, mesh: Mesh) -> None:
    shards = sharding.row_shards(mesh)
    for key in ("batch_size", "chunk_size"):
        if getattr(settings, key) % shards:
            raise ValueError(
                f"config.{key}={getattr(settings, key)} must be a multiple of {shards}, the number "
                "of row shards (mesh.data x mesh.fsdp)."
            )
    k = settings.loss.hard_negatives
    if k is not None and k >= settings.batch_size:
        raise ValueError(
            f"config.loss.hard_negatives={k} must be below config.batch_size="
            f"{settings.batch_size}: a batch offers at most batch_size - 1 in-batch negatives."
        )


def _prepare(prepare: config.PrepareConfig, folder: pathlib.Path) -> None:
    if not prepare.module:
        return
    if jax.process_index() == 0:
        started = time.perf_counter()
        importlib.import_module(prepare.module).prepare(
            folder,
            seed=prepare.seed,
            train_rows=prepare.train_rows,
            eval_rows=prepare.eval_rows,
        )
        logging.info("data in %s ready after %.1f s", folder, time.perf_counter() - started)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("data prepared")


def _evaluate(
    tests: suite.Suite, encoder: Encoder, workdir: pathlib.Path, when: Literal["before", "after"]
) -> None:
    if not tests.datasets and not tests.composition:
        return
    started = time.perf_counter()
    found, results = suite.evaluate(tests, encoder)
    logging.info("evaluation %s training took %.1f s", when, time.perf_counter() - started)
    if jax.process_index() == 0:
        # The scores say that this side is done, so they come last.
        mmeb.save_results(workdir / f"results_{when}.npz", results)
        scores.write_scores(workdir, when, found)


def _write_report(settings: config.TrainConfig, workdir: pathlib.Path, tests: suite.Suite) -> None:
    found = scores.read_scores(workdir)
    if not found or not (tests.datasets or tests.composition):
        return
    results = {when: mmeb.load_results(workdir / f"results_{when}.npz") for when in found}
    path = report.write_report(
        workdir,
        table=tests.table,
        before=results.get("before"),
        after=results.get("after"),
        images=tests.images,
        title=f"Training {workdir.name}",
        facts={
            "backbone": settings.backbone,
            "steps": f"{settings.steps} of {settings.batch_size} pairs",
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        },
    )
    table = scores.table(found.get("before"), found.get("after"))
    logging.info("%s\n\n%s\n\nreport: %s", workdir, table, path)


def _examples(
    rows: Mapping[str, sources.Source], preprocess: pack.Preprocess, plan: pack.Plan
) -> Sequence[Item]:
    """Text, images and both at once, out of the training data, for the export's self-check."""
    items = [Item("A plain text without any image.")]
    for name in sorted(rows)[:8]:
        for index in range(min(len(rows[name]), 100)):
            try:
                example = sources.to_example(name, rows[name][index], str(index))
                pack.prepare(example, preprocess, plan)
            except quarantine.BadExample:
                continue
            items += [example.query, example.positive]
            break
    pictured = [item for item in items if item.image]
    return [*items, *(dataclasses.replace(item, text="<|image_1|>") for item in pictured[:1])]


def _write_config(workdir: pathlib.Path, config_dict: ConfigDict) -> None:
    if jax.process_index() == 0:
        text = json.dumps(config_dict.to_dict(), indent=2) + "\n"
        (workdir / "config.json").write_text(text)
