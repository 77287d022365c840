"""Train an embedder, evaluate it before and after, and leave a report and Hugging Face weights.

With a distillation loss (UniME stage 1) the language component alone is trained, on texts;
evaluation and export are of the whole model, with that component put back.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping

import grain
import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unime_jax import config, config_reader, files, paths
from unime_jax.data import formats
from unime_jax.data.embedding_store import open_embeddings
from unime_jax.data.reader import Reader
from unime_jax.evaluation import scores, suite
from unime_jax.evaluation.stored import earlier
from unime_jax.jobs import boundary, export, preflight
from unime_jax.jobs.common_checks import Problems
from unime_jax.operations import compilation_cache, exits, stop, watchdog
from unime_jax.operations.config_file import write_config
from unime_jax.operations.goodput import Goodput, Phase
from unime_jax.operations.stop import StopSignal
from unime_jax.operations.watchdog import Watchdog
from unime_jax.training import (
    batch_clusters,
    evaluations,
    inputs,
    loop,
    metrics,
    outcome,
    results,
    resume,
    state,
    step,
    tensorboard,
)
from unime_jax.training.checkpoint import Checkpoints
from unime_jax.training.evaluations import Evaluations
from unime_jax.training.loss_settings import Distillation
from unime_jax.training.setup import Setup, make_mesh, set_up
from unime_jax.training.taught import student, with_teacher


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run that is set up, with nothing computed yet.

    Attributes:
      whole: the model that is evaluated and exported.
      trained: the part of it that is trained; all of it, unless the loss is distillation alone.
      rows: the training data by source.
      clusters: of its rows, where batches are made of them.
      batches: an iterator over them, given `first_batch`.
    """

    settings: config.TrainConfig
    workdir: files.Path
    goodput: Goodput
    stop_signal: StopSignal
    whole: Setup
    trained: Setup
    rows: Mapping[str, formats.Source]
    clusters: batch_clusters.BatchClusters | None
    batches: Callable[..., grain.DatasetIterator]
    tests: suite.Suite

    @contextlib.contextmanager
    def phase(self, phase: Phase, late: str, seconds: float) -> Iterator[None]:
        """Counts the time inside for `phase`, and watches it: see `Watchdog.phase`."""
        with self.goodput.spend(phase), watchdog.phase(late, seconds):
            yield


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
        mesh = _check(settings, workdir)
        stack.enter_context(boundary.owning(workdir, "run.lock", "trains in", folder))
        resume.check_config(workdir, config_dict.to_dict())
        if jax.process_index() == 0:
            earlier.set_damaged_aside(workdir)
        write_config(workdir, config_dict)
        compilation_cache.use_for_job(settings.compilation_cache, workdir)
        goodput = Goodput(workdir, writes=jax.process_index() == 0)
        with StopSignal() as stop_signal:
            inputs.prepare(settings.data.prepare, folder)
            with jax.set_mesh(mesh):
                this = _set_up(settings, mesh, workdir, folder, goodput, stop_signal)
                settings = this.settings
                try:
                    trainable, scored = _train(this)
                except outcome.EveryStepSkipped as error:
                    logging.error("%s; nothing is exported: status %d", error, outcome.STATUS)
                    results.write_outcome(settings, workdir)
                    outcome.say(workdir)
                    results.write_report(settings, workdir, None, goodput.summary(), settings.steps)
                    sys.exit(outcome.STATUS)
                results.write_outcome(settings, workdir)
                parameters, steps = _evaluate_ends(this, trainable, scored)
                # also there if the export fails its check
                results.write_report(settings, workdir, this.tests, goodput.summary(), steps)
                with this.phase("export", "the export has not gone on", watch.export_seconds):
                    export.write(this.whole, parameters, steps, this.rows, workdir)
                results.log_results(workdir)
            goodput.write()
            goodput.log()


def _check(settings: config.TrainConfig, workdir: files.Path) -> Mesh:
    """Looks at all that is cheap to look at, before anything is built; returns the mesh."""

    def check_keys(problems: Problems) -> None:
        with problems.collected():
            evaluations.check(settings)
        preflight.check_training(settings, workdir, problems)

    with watchdog.phase("the set-up has not gone on", settings.watchdog.setup_seconds):
        return preflight.check(lambda: make_mesh(settings), workdir, check_keys)


def _set_up(
    settings: config.TrainConfig,
    mesh: Mesh,
    workdir: files.Path,
    folder: files.Path,
    goodput: Goodput,
    stop_signal: StopSignal,
) -> _Run:
    """Opens backbone and data, traces the model, and lists its parameters."""
    with watchdog.phase("the set-up has not gone on", settings.watchdog.setup_seconds):
        rows = inputs.open_rows(settings.data)
        whole = set_up(settings, mesh, rows, workdir)
        settings = whole.settings  # with values for what the config leaves open
        teacher = open_embeddings(folder / settings.data.teacher) if settings.data.teacher else None
        trained = whole
        if teacher is not None:
            distils = isinstance(settings.loss, Distillation)
            trained = (student if distils else with_teacher)(whole, teacher)
        clusters = batch_clusters.open_clusters(settings, rows, workdir)
        batches = inputs.make_batches(trained, rows, clusters)
        table = state.parameter_table(trained.abstract_model)
        logging.info("parameters:\n%s", table)
        if jax.process_index() == 0:
            files.write_whole(workdir / "parameters.txt", table + "\n")
        tests = suite.open_suite(settings, folder, teacher)
        if tests.is_empty:
            logging.warning("no evaluation data is named, so the model is not evaluated")
    return _Run(
        settings, workdir, goodput, stop_signal, whole, trained, rows, clusters, batches, tests
    )


def _train(this: _Run) -> tuple[paths.Parameters, Evaluations]:
    """All steps, from the newest checkpoint on; the trained parameters, and scores on the way.

    Raises:
      SystemExit: told to stop.
      outcome.EveryStepSkipped: none was finite.
    """
    settings, watch = this.settings, this.settings.watchdog
    with watchdog.phase("the set-up has not gone on", watch.setup_seconds):
        of_data = inputs.fingerprint(this.rows, this.clusters)
        fingerprints = resume.fingerprints(this.whole.backbone, of_data)
    scored = Evaluations(this.workdir, settings)
    with Checkpoints(
        this.workdir / "checkpoints",
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

        def evaluate(state: step.TrainState) -> scores.Scores:
            encoder = this.whole.encoder(untrained | state.frozen | state.trainable)
            return results.evaluate(this.tests, encoder, f"after step {int(state.step)}")[0]

        batches = this.batches(first_batch=done)  # a step takes one
        with contextlib.closing(Reader(batches, batches.close)) as data:
            training = loop.Training(
                settings=settings,
                mesh=this.trained.mesh,
                workdir=this.workdir,
                train_step=this.trained.train_step(train_state, sources=names),
                data=data,
                sources=names,
                evaluate=evaluate,
                checkpoints=checkpoints,
                evaluations=scored,
                monitor=monitor,
                goodput=this.goodput,
                stop_signal=this.stop_signal,
            )
            train_state = loop.run(training, train_state)
        late = "the last checkpoint has not been written"
        with this.phase("checkpoint", late, watch.setup_seconds):
            checkpoints.close()
    this.goodput.write()
    done = int(train_state.step)
    _leave_if_told(this, done, read_hangs=data.hangs)
    if int(train_state.skipped) >= done > 0:
        raise outcome.EveryStepSkipped(f"none of {done} steps was finite")
    return train_state.trainable, scored


def _untrained_part(this: _Run) -> paths.Parameters:
    """Weights beside the student's that evaluations during a distillation need: the tower's."""
    if (
        this.whole.abstract_model is this.trained.abstract_model
        or not this.settings.evaluation.every
    ):
        return {}
    seconds = this.settings.watchdog.setup_seconds
    with watchdog.phase("reading the weights has not gone on", seconds):
        values = this.whole.initial()
    return {p: v for p, v in values.items() if p not in this.trained.abstract_model.parameters}


def _restore(this: _Run, checkpoints: Checkpoints) -> step.TrainState:
    """The state of the newest checkpoint, or that before the first step."""
    seconds, steps = this.settings.watchdog.setup_seconds, this.settings.steps
    with watchdog.phase("reading the weights has not gone on", seconds):
        initial = this.trained.initial_state()
    with this.phase("checkpoint", "restoring a checkpoint has not gone on", seconds):
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
    """Cuts the files of the run after step `done`; returns the monitor of the steps up to there."""
    if jax.process_index() == 0:
        if done < this.settings.steps:
            scores.forget_scores(this.workdir, "after")  # of fewer steps, if a run is extended
        metrics.cut_after(this.workdir / "metrics.jsonl", done)  # and what is damaged
    scored.resume(done)
    this.goodput.resumed(done)
    before = [line for line in results.read_metrics(this.workdir) if line["step"] <= done]
    return outcome.Monitor(this.settings, before)


def _leave_if_told(this: _Run, done: int, *, read_hangs: bool) -> None:
    """Exits if the run was told to stop; from here on a signal ends this process at once."""
    this.stop_signal.unsaved = False
    # A signal so late may have come to one process alone; all go, or all go on.
    told = stop.any_told(this.stop_signal, this.trained.mesh)
    if done == this.settings.steps and not told:
        return
    if read_hangs:  # Python would wait for the thread that reads
        exits.exit_now(this.stop_signal.status)
    sys.exit(this.stop_signal.status)


def _evaluate_ends(
    this: _Run, trainable: paths.Parameters, scored: Evaluations
) -> tuple[paths.Parameters, int]:
    """Evaluates the model before and after training; the one to export, and its steps.

    The start follows from the config, so it is made again rather than kept, and the first step
    need not wait for an evaluation. So are the frozen weights, which may just fit once.
    """
    settings, watch, workdir = this.settings, this.settings.watchdog, this.workdir
    late, steps = "the evaluation has not gone on", settings.steps
    with watchdog.phase("reading the weights has not gone on", watch.setup_seconds):
        parameters = this.whole.initial()
    with this.phase("evaluation", late, watch.evaluation_seconds):
        if "before" not in scores.read_scores(workdir):
            encoder = this.whole.encoder(parameters)
            results.evaluate_side(this.tests, encoder, workdir, "before")
        parameters |= trainable
        encoder = this.whole.encoder(parameters)
        after = results.evaluate_side(this.tests, encoder, workdir, "after")
    if settings.evaluation.every:
        scored.add(steps, after)
    if settings.export.checkpoint == "best" and scored.best(scored.scores) != steps:
        del parameters, encoder
        with this.phase(
            "checkpoint", "restoring a checkpoint has not gone on", watch.setup_seconds
        ):
            best = export.restore(this.whole, workdir, scored.scores)
        parameters, steps = best.frozen | best.trainable, int(best.step)
        del best
        with this.phase("evaluation", late, watch.evaluation_seconds):
            encoder = this.whole.encoder(parameters)
            results.evaluate_side(this.tests, encoder, workdir, "after")
    if jax.process_index() == 0:
        before = scores.read_scores(workdir).get("before", {})
        tensorboard.write_evaluation(workdir, {0: before, **scored.scores, settings.steps: after})
    this.goodput.write()
    return parameters, steps
