"""Train an embedder, evaluate it before and after, and leave a report and Hugging Face weights.

With a distillation loss (UniME stage 1) it is the language component alone that is trained, on
texts; everything after the last step is about the whole model, with that component put back.
"""

import contextlib
import importlib
import pathlib
import time
from typing import Literal

import jax
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unime_jax import config, loop, optimizer, sharding, state, step
from unime_jax.checkpoint import Checkpoints
from unime_jax.data import loader, sources
from unime_jax.data.embeddings import open_embeddings
from unime_jax.encode import Encoder
from unime_jax.evaluation import mmeb, report, scores, suite
from unime_jax.jobs import export
from unime_jax.jobs.setup import make_mesh, set_up, student, write_config


def run(config_dict: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs or resumes the training in `workdir`.

    Raises:
      ValueError: the config does not make sense; nothing has been trained then.
      RuntimeError: too many non-finite steps in a row, or an export that fails its check.
    """
    settings = config.read(config.TrainConfig, config_dict.to_dict())
    mesh = make_mesh(settings)
    workdir.mkdir(parents=True, exist_ok=True)
    write_config(workdir, config_dict)
    folder = pathlib.Path(settings.data.folder).expanduser()
    _prepare(settings.data.prepare, folder)
    with jax.set_mesh(mesh):
        _train(settings, mesh, workdir, folder)


def _train(
    settings: config.TrainConfig, mesh: Mesh, workdir: pathlib.Path, folder: pathlib.Path
) -> None:
    whole = set_up(settings, mesh)
    teacher = open_embeddings(folder / settings.data.teacher) if settings.data.teacher else None
    setup = whole if teacher is None else student(whole, teacher)
    schedule = optimizer.make_schedule(settings.optimizer, settings.steps)
    rows = sources.open_dataset(folder / settings.data.train)
    data = loader.make_loader(
        rows,
        settings.data.weights or dict.fromkeys(rows, 1.0),
        batch_size=settings.batch_size,
        homogeneous=settings.data.homogeneous,
        seed=settings.seed,
        preprocess=setup.preprocess,
        plan=setup.plan,
        workers=settings.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    table = state.parameter_table(setup.blueprint)
    logging.info("parameters:\n%s", table)
    if jax.process_index() == 0:
        (workdir / "parameters.txt").write_text(table + "\n")
    now = setup.initial_state()
    tests = suite.open_suite(settings, folder, teacher)

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
                setup.encode,
                setup.optimizer(),
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

    # The start follows from the config, so it is made again rather than kept, and the first step
    # need not wait for an evaluation.
    trainable = now.trainable
    del now  # the frozen weights, too, are made again: they may just fit once
    initial = whole.initial()
    if "before" not in scores.read_scores(workdir):
        _evaluate(tests, whole.encoder(initial), workdir, "before")
    trained = initial | trainable
    del initial
    _evaluate(tests, whole.encoder(trained), workdir, "after")
    export.write(whole, trained, settings.steps, rows, workdir)
    if jax.process_index() == 0:
        _write_report(settings, workdir, tests)


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
    if tests.is_empty:
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
    if not found or tests.is_empty:
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
