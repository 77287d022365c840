"""Train an embedder, evaluate it before and after, and leave a report and Hugging Face weights.

With a distillation loss (UniME stage 1) it is the language component alone that is trained, on
texts; everything after the last step is about the whole model, with that component put back.
"""

import contextlib
import functools
import importlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import grain
import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unime_jax import config, config_reader, files
from unime_jax.data import loader, mixture, sources
from unime_jax.data.embedding_store import open_embeddings
from unime_jax.data.reader import Reader
from unime_jax.encode import Encoder
from unime_jax.evaluation import earlier, mmeb, report, run_facts, scores, suite
from unime_jax.jobs import boundary, export, preflight
from unime_jax.operations import compilation_cache, cross_process, exits, processes, watchdog
from unime_jax.operations.goodput import Goodput
from unime_jax.operations.stop import StopSignal
from unime_jax.operations.watchdog import Watchdog
from unime_jax.training import loop, metrics, outcome, resume, state
from unime_jax.training.checkpoint import Checkpoints
from unime_jax.training.setup import Setup, make_mesh, set_up, student, write_config


def run(config_dict: ConfigDict, workdir: files.Path) -> None:
    """Runs or resumes the training in `workdir`.

    Raises:
      ValueError: the config does not make sense, or not in this work directory; nothing has been
        trained then.
      RuntimeError: too many non-finite steps in a row, a checkpoint that cannot be written, a disk
        that takes no more, or an export that fails its check.
      SystemExit: SIGTERM or Ctrl-C has come, and the same command goes on from here; or every step
        was skipped (status `outcome.STATUS`), and nothing is exported.
    """
    settings = config_reader.read(config.TrainConfig, config_dict.to_dict())
    folder = files.as_path(settings.data.folder)
    watch = settings.watchdog
    stacks = workdir / f"stacks-{jax.process_index()}.txt"
    with Watchdog(stacks, seconds=watch.seconds, exit=watch.exit), contextlib.ExitStack() as stack:
        with watchdog.phase("the set-up has not gone on", watch.setup_seconds):
            mesh = preflight.check(
                lambda: make_mesh(settings),
                workdir,
                lambda problems: preflight.check_training(settings, workdir, problems),
            )
        stack.enter_context(boundary.owning(workdir, "run.lock", "trains in", folder))
        resume.check_config(workdir, config_dict.to_dict())
        if jax.process_index() == 0:
            earlier.set_damaged_aside(workdir)
        write_config(workdir, config_dict)
        compilation_cache.use_for_job(settings.compilation_cache, workdir)
        goodput = Goodput(workdir, writes=jax.process_index() == 0)
        with StopSignal() as stop_signal:
            _prepare(settings.data.prepare, folder)
            with jax.set_mesh(mesh):
                try:
                    _train(settings, mesh, workdir, folder, goodput, stop_signal)
                except outcome.EveryStepSkipped as error:
                    logging.error("%s; nothing is exported: status %d", error, outcome.STATUS)
                    _write_outcome(settings, workdir)
                    outcome.say(workdir)
                    _write_report(settings, workdir, None, goodput)
                    sys.exit(outcome.STATUS)
            goodput.write()
            goodput.log()


def _train(
    settings: config.TrainConfig,
    mesh: Mesh,
    workdir: files.Path,
    folder: files.Path,
    goodput: Goodput,
    stop_signal: StopSignal,
) -> None:
    watch = settings.watchdog
    with watchdog.phase("the set-up has not gone on", watch.setup_seconds):
        whole = set_up(settings, mesh)
        teacher = open_embeddings(folder / settings.data.teacher) if settings.data.teacher else None
        setup = whole if teacher is None else student(whole, teacher)
        rows = sources.open_dataset(folder / settings.data.train)
        make_loader = _loader(setup, rows)
        table = state.parameter_table(setup.abstract_model)
        logging.info("parameters:\n%s", table)
        if jax.process_index() == 0:
            files.write_whole(workdir / "parameters.txt", table + "\n")
        tests = suite.open_suite(settings, folder, teacher)
        facts = resume.facts(whole.backbone, {name: len(rows[name]) for name in rows})

    with Checkpoints(
        workdir / "checkpoints",
        every=settings.checkpoint.every,
        keep=settings.checkpoint.keep,
        facts=facts,
    ) as checkpoints:
        with watchdog.phase("reading the weights has not gone on", watch.setup_seconds):
            now = setup.initial_state()
        with (
            goodput.spend("checkpoint"),
            watchdog.phase("restoring a checkpoint has not gone on", watch.setup_seconds),
        ):
            restored = checkpoints.restore(now)
        if restored is not None:
            now = restored
            logging.info("resuming %s after step %d", workdir, int(now.step))
        del restored
        if int(now.step) > settings.steps:
            raise ValueError(
                f"config.steps={settings.steps}, but {workdir} has a checkpoint of step "
                f"{int(now.step)} already."
            )
        if int(now.step) < settings.steps and jax.process_index() == 0:
            scores.forget_scores(workdir, "after")  # of fewer steps, where a run is extended
        goodput.resumed(int(now.step))
        # A step takes one batch, so the number of steps says which batch comes next.
        names = sorted(settings.data.weights or rows)  # as the loader numbers them
        if jax.process_index() == 0:
            metrics.cut_after(workdir / "metrics.jsonl", int(now.step))  # and what is damaged
        before = [line for line in _metrics(workdir) if line["step"] <= int(now.step)]
        batches = make_loader(first_batch=int(now.step))
        with contextlib.closing(Reader(batches, batches.close)) as data:
            now = loop.run(
                settings,
                mesh,
                workdir,
                setup.train_step(now, sources=len(names)),
                now,
                data,
                checkpoints,
                goodput,
                stop_signal,
                names,
                outcome.Monitor(settings, before),
            )
        with (
            goodput.spend("checkpoint"),
            watchdog.phase("the last checkpoint has not been written", watch.setup_seconds),
        ):
            checkpoints.close()
    goodput.write()
    stop_signal.unsaved = False  # from here on a signal ends this process at once
    # One that has come until here may have come to one process alone; all go, or all go on.
    told = cross_process.sum_over_processes(mesh)({"told": stop_signal.told})()["told"]
    if int(now.step) < settings.steps or told:
        if data.hangs:  # Python would wait for the thread that reads
            exits.exit_now(stop_signal.status)
        sys.exit(stop_signal.status)
    if int(now.skipped) >= int(now.step) > 0:
        raise outcome.EveryStepSkipped(f"none of {int(now.step)} steps was finite")
    _write_outcome(settings, workdir)

    # The start follows from the config, so it is made again rather than kept, and the first step
    # need not wait for an evaluation.
    trainable = now.trainable
    del now  # the frozen weights, too, are made again: they may just fit once
    with watchdog.phase("reading the weights has not gone on", watch.setup_seconds):
        initial = whole.initial()
    with (
        goodput.spend("evaluation"),
        watchdog.phase("the evaluation has not gone on", watch.evaluation_seconds),
    ):
        if "before" not in scores.read_scores(workdir):
            _evaluate(tests, whole.encoder(initial), workdir, "before")
        trained = initial | trainable
        del initial
        _evaluate(tests, whole.encoder(trained), workdir, "after")
        if jax.process_index() == 0:
            metrics.write_evaluation(workdir, scores.read_scores(workdir), settings.steps)
    goodput.write()
    _write_report(settings, workdir, tests, goodput)  # also there if the export fails its check
    with (
        goodput.spend("export"),
        watchdog.phase("the export has not gone on", watch.export_seconds),
    ):
        export.write(whole, trained, settings.steps, rows, workdir)
    if jax.process_index() == 0:
        if found := scores.read_scores(workdir):
            table = scores.table(found.get("before"), found.get("after"))
            logging.info("%s\n\n%s\n\nreport: %s", workdir, table, workdir / report.FILE)
        outcome.say(workdir)


def _loader(
    setup: Setup, rows: Mapping[str, sources.Source]
) -> Callable[..., grain.DatasetIterator]:
    """`make_loader` for all but the first batch; what is wrong with the config is said here."""
    settings, processes = setup.settings, jax.process_count()
    weights = settings.data.weights or dict.fromkeys(rows, 1.0)
    mixture.check(rows, weights, settings.batch_size, settings.data.homogeneous, processes)
    return functools.partial(
        loader.make_loader,
        rows,
        weights,
        batch_size=settings.batch_size,
        homogeneous=settings.data.homogeneous,
        seed=settings.seed,
        preprocess=setup.preprocess,
        plan=setup.plan,
        workers=settings.data.workers,
        process_index=jax.process_index(),
        process_count=processes,
    )


def _prepare(prepare: config.PrepareConfig, folder: files.Path) -> None:
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
    processes.barrier("data prepared")


def _evaluate(
    tests: suite.Suite, encoder: Encoder, workdir: files.Path, when: Literal["before", "after"]
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


def _metrics(workdir: files.Path) -> list[dict[str, Any]]:
    try:
        return report.read_metrics(workdir / "metrics.jsonl")
    except (ValueError, OSError) as error:  # a run does not end for its statistics
        logging.warning("%s; whether the run learns is told from now on", error)
        return []


def _write_outcome(settings: config.TrainConfig, workdir: files.Path) -> None:
    if jax.process_index() == 0:
        outcome.write(workdir, outcome.Monitor(settings, _metrics(workdir)).outcome())


def _write_report(
    settings: config.TrainConfig,
    workdir: files.Path,
    tests: suite.Suite | None,
    goodput: Goodput,
) -> None:
    """The report of an evaluation, or, without `tests`, of a run that has come to none."""
    found = scores.read_scores(workdir) if tests else {}
    if jax.process_index() != 0 or (tests and (tests.is_empty or not found)):
        return
    results = {when: mmeb.load_results(workdir / f"results_{when}.npz") for when in found}
    report.write_report(
        workdir,
        table=tests.table if tests else {},
        before=results.get("before"),
        after=results.get("after"),
        images=tests.images if tests else lambda path: b"",
        title=f"Training {workdir.name}",
        facts=run_facts.run_facts(settings, goodput.summary()),
        composition_rows={n: len(r) for n, r in tests.composition.items()} if tests else {},
    )
