"""Train an embedder, evaluate it before and after, and leave a report and Hugging Face weights.

With a distillation loss (UniME stage 1) the language component alone is trained, on texts;
evaluation and export are of the whole model, with that component put back.
"""

import contextlib
import dataclasses
import functools
import importlib
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import grain
import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unime_jax import (
    compilation_cache,
    config,
    config_reader,
    exits,
    loop,
    metrics,
    outcome,
    paths,
    processes,
    state,
    step,
    stop,
    watchdog,
)
from unime_jax.checkpoint import Checkpoints
from unime_jax.data import loader, mixture, sources
from unime_jax.data.embeddings import open_embeddings
from unime_jax.data.reader import Reader
from unime_jax.evaluation import earlier, mmeb, report, run_facts, scores, suite
from unime_jax.goodput import Goodput
from unime_jax.jobs import boundary, export, preflight, same_run
from unime_jax.jobs.setup import Setup, make_mesh, set_up, student, write_config
from unime_jax.stop import StopSignal
from unime_jax.training import evaluations, tensorboard
from unime_jax.training.evaluations import Evaluations
from unime_jax.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run that is set up: nothing is computed yet.

    Attributes:
      whole: the model that is evaluated and exported.
      trained: the part of it that is trained: all of it, but with distillation.
      rows: the training data by source.
      batches: an iterator over them, given `first_batch`.
    """

    settings: config.TrainConfig
    workdir: pathlib.Path
    goodput: Goodput
    stop_signal: StopSignal
    whole: Setup
    trained: Setup
    rows: Mapping[str, sources.Source]
    batches: Callable[..., grain.DatasetIterator]
    tests: suite.Suite


def run(config_dict: ConfigDict, workdir: pathlib.Path) -> None:
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
    folder = pathlib.Path(settings.data.folder).expanduser()
    watch = settings.watchdog
    stacks = workdir / f"stacks-{jax.process_index()}.txt"
    with Watchdog(stacks, seconds=watch.seconds, exit=watch.exit), contextlib.ExitStack() as stack:
        mesh = _check(settings, workdir)
        stack.enter_context(boundary.owning(workdir, "run.lock", "trains in", folder))
        same_run.check_config(workdir, config_dict.to_dict())
        if jax.process_index() == 0:
            earlier.set_damaged_aside(workdir)
        write_config(workdir, config_dict)
        compilation_cache.use_for_job(settings.compilation_cache, workdir)
        goodput = Goodput(workdir, writes=jax.process_index() == 0)
        with StopSignal() as stop_signal:
            _prepare(settings.data.prepare, folder)
            with jax.set_mesh(mesh):
                this = _set_up(settings, mesh, workdir, folder, goodput, stop_signal)
                try:
                    trainable, scored = _train(this)
                except outcome.EveryStepSkipped as error:
                    logging.error("%s; nothing is exported: status %d", error, outcome.STATUS)
                    _write_outcome(settings, workdir)
                    outcome.say(workdir)
                    _write_report(this, None)
                    sys.exit(outcome.STATUS)
                _write_outcome(settings, workdir)
                parameters, steps = _evaluate_ends(this, trainable, scored)
                _write_report(this, this.tests)  # also there if the export fails its check
                _export(this, parameters, steps)
            goodput.write()
            goodput.log()


def _check(settings: config.TrainConfig, workdir: pathlib.Path) -> Mesh:
    """Everything that is cheap to look at, before anything is built; the mesh."""

    def check_keys(problems: preflight.Problems) -> None:
        with problems.collected():
            evaluations.check(settings)
        preflight.check_training(settings, workdir, problems)

    with watchdog.phase("the set-up has not gone on", settings.watchdog.setup_seconds):
        return preflight.check(lambda: make_mesh(settings), workdir, check_keys)


def _prepare(prepare: config.PrepareConfig, folder: pathlib.Path) -> None:
    """Generates the data of `data.prepare` where they are missing."""
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


def _set_up(
    settings: config.TrainConfig,
    mesh: Mesh,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    goodput: Goodput,
    stop_signal: StopSignal,
) -> _Run:
    """Opens backbone and data, and traces the model; lists the parameters."""
    with watchdog.phase("the set-up has not gone on", settings.watchdog.setup_seconds):
        whole = set_up(settings, mesh)
        teacher = open_embeddings(folder / settings.data.teacher) if settings.data.teacher else None
        trained = whole if teacher is None else student(whole, teacher)
        rows = sources.open_dataset(folder / settings.data.train)
        batches = _loader(trained, rows)
        table = state.parameter_table(trained.blueprint)
        logging.info("parameters:\n%s", table)
        if jax.process_index() == 0:
            (workdir / "parameters.txt").write_text(table + "\n")
        tests = suite.open_suite(settings, folder, teacher)
    return _Run(settings, workdir, goodput, stop_signal, whole, trained, rows, batches, tests)


def _loader(
    setup: Setup, rows: Mapping[str, sources.Source]
) -> Callable[..., grain.DatasetIterator]:
    """`make_loader` but for the first batch.

    Raises:
      ValueError: the config's weights or runs of a source do not fit the data.
    """
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


def _train(this: _Run) -> tuple[paths.Parameters, Evaluations]:
    """All steps, from the newest checkpoint on; the trained parameters, and scores on the way.

    Raises:
      SystemExit: told to stop.
      outcome.EveryStepSkipped: none was finite.
    """
    settings, workdir, goodput, watch = (
        this.settings,
        this.workdir,
        this.goodput,
        this.settings.watchdog,
    )
    with watchdog.phase("the set-up has not gone on", watch.setup_seconds):
        row_counts = {name: len(this.rows[name]) for name in this.rows}
        fingerprints = same_run.fingerprints(this.whole.backbone, row_counts)
    scored = Evaluations(workdir, settings)
    with Checkpoints(
        workdir / "checkpoints",
        every=settings.checkpoint.every,
        keep=settings.checkpoint.keep,
        fingerprints=fingerprints,
        best=scored.best if settings.checkpoint.keep_best else None,
    ) as checkpoints:
        untrained = _untrained_part(this)
        train_state = _restore(this, checkpoints)
        done = int(train_state.step)
        monitor = _resume(this, scored, done)
        names = sorted(settings.data.weights or this.rows)  # as the loader numbers them

        def evaluate(train_state: step.TrainState) -> scores.Scores:
            parameters = untrained | train_state.frozen | train_state.trainable
            return _scores(this, parameters, f"after step {int(train_state.step)}")[0]

        # A step takes one batch, so the number of steps says which batch comes next.
        batches = this.batches(first_batch=done)
        with contextlib.closing(Reader(batches, batches.close)) as data:
            training = loop.Training(
                settings=settings,
                mesh=this.trained.mesh,
                workdir=workdir,
                train_step=this.trained.train_step(train_state, sources=len(names)),
                data=data,
                sources=names,
                evaluate=evaluate,
                checkpoints=checkpoints,
                evaluations=scored,
                monitor=monitor,
                goodput=goodput,
                stop_signal=this.stop_signal,
            )
            train_state = loop.run(training, train_state)
        with (
            goodput.spend("checkpoint"),
            watchdog.phase("the last checkpoint has not been written", watch.setup_seconds),
        ):
            checkpoints.close()
    goodput.write()
    done = int(train_state.step)
    _leave_if_told(this, done, reader_hangs=data.hangs)
    if int(train_state.skipped) >= done > 0:
        raise outcome.EveryStepSkipped(f"none of {done} steps was finite")
    return train_state.trainable, scored


def _untrained_part(this: _Run) -> paths.Parameters:
    """Weights of the whole model that evaluations during distillation need: the vision tower's."""
    if this.whole is this.trained or not this.settings.evaluation.every:
        return {}
    with watchdog.phase(
        "reading the weights has not gone on", this.settings.watchdog.setup_seconds
    ):
        values = this.whole.initial()
    return {p: v for p, v in values.items() if p not in this.trained.blueprint.parameters}


def _restore(this: _Run, checkpoints: Checkpoints) -> step.TrainState:
    """The state of the newest checkpoint, or that before the first step."""
    seconds, steps = this.settings.watchdog.setup_seconds, this.settings.steps
    with watchdog.phase("reading the weights has not gone on", seconds):
        initial = this.trained.initial_state()
    with (
        this.goodput.spend("checkpoint"),
        watchdog.phase("restoring a checkpoint has not gone on", seconds),
    ):
        restored = checkpoints.restore(initial)
    if restored is None:
        return initial
    logging.info("resuming %s after step %d", this.workdir, int(restored.step))
    if int(restored.step) > steps:
        raise ValueError(
            f"config.steps={steps}, but {this.workdir} has a checkpoint of step "
            f"{int(restored.step)} already."
        )
    return restored


def _resume(this: _Run, scored: Evaluations, done: int) -> outcome.Monitor:
    """Cuts files of the run after step `done`; the monitor of the steps up to there."""
    if jax.process_index() == 0:
        if done < this.settings.steps:
            scores.forget_scores(this.workdir, "after")  # of fewer steps, if a run is extended
        metrics.cut_after(this.workdir / "metrics.jsonl", done)  # and what is damaged
    scored.resume(done)
    this.goodput.resumed(done)
    before = [line for line in _metrics(this.workdir) if line["step"] <= done]
    return outcome.Monitor(this.settings, before)


def _leave_if_told(this: _Run, done: int, *, reader_hangs: bool) -> None:
    """Exits if the run was told to stop; from here on a signal ends this process at once."""
    this.stop_signal.unsaved = False
    # A signal so late may have come to one process alone; all go, or all go on.
    told = stop.any_told(this.stop_signal, this.trained.mesh)
    if done == this.settings.steps and not told:
        return
    if reader_hangs:  # Python would wait for the thread that reads
        exits.exit_now(this.stop_signal.status)
    sys.exit(this.stop_signal.status)


def _evaluate_ends(
    this: _Run, trainable: paths.Parameters, scored: Evaluations
) -> tuple[paths.Parameters, int]:
    """Evaluates the model before and after training; the one to export, and its steps.

    The start follows from the config, so it is made again rather than kept, and the first step
    need not wait for an evaluation. The frozen weights are made again as well: they may just fit
    once.
    """
    settings, workdir, watch = this.settings, this.workdir, this.settings.watchdog
    steps = settings.steps
    with watchdog.phase("reading the weights has not gone on", watch.setup_seconds):
        parameters = this.whole.initial()
    with (
        this.goodput.spend("evaluation"),
        watchdog.phase("the evaluation has not gone on", watch.evaluation_seconds),
    ):
        if "before" not in scores.read_scores(workdir):
            _evaluate(this, parameters, "before")
        parameters |= trainable
        after = _evaluate(this, parameters, "after")
    if settings.evaluation.every:
        scored.add(steps, after)
    if settings.export.checkpoint == "best" and scored.best(scored.scores) != steps:
        del parameters, trainable
        parameters, steps = _best(this, scored)
    if jax.process_index() == 0:
        before = scores.read_scores(workdir).get("before", {})
        tensorboard.write_evaluation(workdir, {0: before, **scored.scores, settings.steps: after})
    this.goodput.write()
    return parameters, steps


def _best(this: _Run, scored: Evaluations) -> tuple[paths.Parameters, int]:
    """The model of the best checkpoint, which is evaluated as "after", and its steps."""
    watch = this.settings.watchdog
    with (
        this.goodput.spend("checkpoint"),
        watchdog.phase("reading the best checkpoint has not gone on", watch.setup_seconds),
    ):
        best = export.restore(this.whole, this.workdir, scored.scores)
    parameters, steps = best.frozen | best.trainable, int(best.step)
    del best
    with (
        this.goodput.spend("evaluation"),
        watchdog.phase("the evaluation has not gone on", watch.evaluation_seconds),
    ):
        _evaluate(this, parameters, "after")
    return parameters, steps


def _evaluate(
    this: _Run, parameters: paths.Parameters, when: Literal["before", "after"]
) -> scores.Scores:
    """Evaluates a side of evaluation.json, and keeps what the report shows of it."""
    if this.tests.is_empty:
        return {}
    found, results = _scores(this, parameters, f"{when} training")
    if jax.process_index() == 0:
        # The scores say that this side is done, so they come last.
        mmeb.save_results(this.workdir / f"results_{when}.npz", results)
        scores.write_scores(this.workdir, when, found)
    return found


def _scores(
    this: _Run, parameters: paths.Parameters, when: str
) -> tuple[scores.Scores, dict[str, mmeb.DatasetResult]]:
    """Scores of the whole model in percent, and what the report shows of each dataset."""
    started = time.perf_counter()
    evaluated = suite.evaluate(this.tests, this.whole.encoder(parameters))
    logging.info("evaluation %s took %.1f s", when, time.perf_counter() - started)
    return evaluated


def _export(this: _Run, parameters: paths.Parameters, steps: int) -> None:
    """Leaves <workdir>/hf, and says in the log what the run has come to."""
    with (
        this.goodput.spend("export"),
        watchdog.phase("the export has not gone on", this.settings.watchdog.export_seconds),
    ):
        export.write(this.whole, parameters, steps, this.rows, this.workdir)
    if jax.process_index() == 0:
        if sides := scores.read_scores(this.workdir):
            table = scores.table(sides.get("before"), sides.get("after"))
            path = this.workdir / report.FILE
            logging.info("%s\n\n%s\n\nreport: %s", this.workdir, table, path)
        outcome.say(this.workdir)


def _metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none if they cannot be read."""
    try:
        return report.read_metrics(workdir / "metrics.jsonl")
    except (ValueError, OSError) as error:  # a run does not end for its statistics
        logging.warning("%s; whether the run learns is told from now on", error)
        return []


def _write_outcome(settings: config.TrainConfig, workdir: pathlib.Path) -> None:
    if jax.process_index() == 0:
        outcome.write(workdir, outcome.Monitor(settings, _metrics(workdir)).outcome())


def _write_report(this: _Run, tests: suite.Suite | None) -> None:
    """Writes the report of an evaluation, or, without `tests`, of a run that has come to none."""
    workdir = this.workdir
    sides = scores.read_scores(workdir) if tests else {}
    if jax.process_index() != 0 or (tests and (tests.is_empty or not sides)):
        return
    results = {when: mmeb.load_results(workdir / f"results_{when}.npz") for when in sides}
    report.write_report(
        workdir,
        table=tests.table if tests else {},
        before=results.get("before"),
        after=results.get("after"),
        images=tests.images if tests else lambda path: b"",
        title=f"Training {workdir.name}",
        facts=run_facts.run_facts(this.settings, this.goodput.summary()),
        composition_rows={n: len(r) for n, r in tests.composition.items()} if tests else {},
    )
