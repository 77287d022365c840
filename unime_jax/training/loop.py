"""The training loop: batches to steps, metrics, checkpoints, evaluations, and a clean stop."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled, Wrapped

from unime_jax import config, files, sharding
from unime_jax.batch import Batch
from unime_jax.data import quarantine
from unime_jax.data.packing import PackInfo
from unime_jax.data.reader import Reader
from unime_jax.operations import compilation_cache, processes, stop, watchdog
from unime_jax.operations.goodput import Goodput
from unime_jax.operations.profiling import ProfileWindow
from unime_jax.operations.stop import StopSignal
from unime_jax.training import outcome, step
from unime_jax.training.checkpoint import Checkpoints
from unime_jax.training.evaluations import Evaluations, Scores
from unime_jax.training.metrics import MetricsWriter
from unime_jax.training.step_metrics import StepMetrics

# A read that hangs in one of several processes, which cannot save without each other.
HANGING_SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class Training:
    """A training run, but for its state.

    Attributes:
      train_step: from a state, which it donates, and a batch to the next state and metrics.
      sources: the names that `Batch.source` counts.
      evaluate: scores of a state; all processes call it and get the same.
    """

    settings: config.TrainConfig
    mesh: Mesh
    workdir: files.Path
    train_step: Wrapped
    data: Reader[tuple[Batch, PackInfo]]
    sources: Sequence[str]
    evaluate: Callable[[step.TrainState], Scores]
    checkpoints: Checkpoints
    evaluations: Evaluations
    monitor: outcome.Monitor
    goodput: Goodput
    stop_signal: StopSignal


def run(training: Training, state: step.TrainState) -> step.TrainState:
    """Steps until done or told to stop; the state then.

    Raises:
      RuntimeError: too many non-finite steps in a row (`outcome.EveryStepSkipped`: and none
        before), or a checkpoint or scores that cannot be written.
      ValueError: too many examples that cannot be used.
    """
    settings, workdir, profiled = training.settings, training.workdir, training.settings.profile
    checkpoints, evaluations = training.checkpoints, training.evaluations
    done = int(state.step)
    train_step: Compiled | None = None
    with (
        MetricsWriter(
            workdir,
            total_steps=settings.steps,
            wandb_project=settings.wandb_project,
            resume_step=done,
        ) as writer,
        ProfileWindow(
            workdir / "profile", first_step=profiled.first_step, steps=profiled.steps
        ) as profile,
        watchdog.phase("no step has finished", settings.watchdog.seconds),
        training.goodput.spend("compute"),
    ):
        metrics = StepMetrics(
            settings,
            training.mesh,
            workdir,
            training.sources,
            writer,
            training.monitor,
            training.stop_signal,
        )
        stopped = False
        if evaluations.is_due(done) and not int(state.skipped_in_a_row):  # a kill was in its way
            stopped = _evaluate(training, done, state, metrics, writer)
        while done < settings.steps and not stopped:
            asked = time.perf_counter()
            read = _next_batch(training, metrics)
            waited = time.perf_counter() - asked
            if read is None:
                _leave_hanging_read(training.stop_signal, done)
                _save(training, done, state, metrics, always=True)
                break
            batch, info = read
            profile.before(done + 1)
            placed = to_device(batch, training.mesh)
            train_step = train_step or _compile(training, state, placed)
            with jax.transfer_guard("disallow"):
                state, results = train_step(state, placed)
            training.stop_signal.unsaved = True
            done += 1
            profile.after(done, results)
            metrics.add(done, results, info, waited)
            checkpoints.check()
            training.goodput.stepped(done)
            stopped = metrics.told_to_stop
            ends, evaluates = stopped or done == settings.steps, evaluations.is_due(done)
            if ends or evaluates or checkpoints.is_due(done):
                is_finite = _save(training, done, state, metrics, always=ends)
                if evaluates and is_finite and not stopped:
                    stopped = _evaluate(training, done, state, metrics, writer)
        if stopped:
            logging.info("told to stop: saving step %d in %s", done, workdir / "checkpoints")
    return state


def _next_batch(training: Training, metrics: StepMetrics) -> tuple[Batch, PackInfo] | None:
    """This process's part of the next batch; None if the read hangs and the run is to stop."""
    try:
        with training.goodput.spend("input"):
            return training.data.next(lambda: _gives_up_reading(training.stop_signal))
    except quarantine.UnusableSource as error:
        path = metrics.refuse(error.items)
        raise ValueError(f"{error}. All are listed in {path}") from error


def _compile(training: Training, state: step.TrainState, batch: Batch) -> Compiled:
    seconds = training.settings.watchdog.compile_seconds
    with (
        training.goodput.spend("compile"),
        compilation_cache.announced(f"the training step of {training.settings.batch_size} pairs"),
        watchdog.phase("the step has not compiled", seconds),
    ):
        compiled = training.train_step.lower(state, batch).compile()
        # CPUs wait 30 s where they connect; compilations may end further apart.
        processes.barrier("step compiled")
    return compiled


def _save(
    training: Training, done: int, state: step.TrainState, metrics: StepMetrics, *, always: bool
) -> bool:
    """Starts a save of step `done`, unless it was skipped; whether it was not.

    A run that is failing must not push its last good checkpoints out; `always` is for its end.
    """
    is_finite = metrics.flush()
    if is_finite or always:
        with training.goodput.spend("checkpoint"):
            training.checkpoints.save(done, state)
        training.goodput.saved(done)
    watchdog.progress()
    return is_finite


def _evaluate(
    training: Training,
    done: int,
    state: step.TrainState,
    metrics: StepMetrics,
    writer: MetricsWriter,
) -> bool:
    """Scores of step `done`, which is saved before: a signal meanwhile ends the process at once.

    Returns True, and leaves the evaluation to the next start, if the run was told to stop.
    """
    watch, goodput = training.settings.watchdog, training.goodput
    with (
        goodput.spend("checkpoint"),
        watchdog.phase("a checkpoint has not been written", watch.setup_seconds),
    ):
        training.checkpoints.wait()
    training.stop_signal.unsaved = False
    if stop.any_told(training.stop_signal, training.mesh):
        return True
    started = time.perf_counter()
    with (
        goodput.spend("evaluation"),
        watchdog.phase("the evaluation has not gone on", watch.evaluation_seconds),
    ):
        scores = training.evaluate(state)
    training.evaluations.add(done, scores)
    writer.write_scores(training.evaluations.scores)
    goodput.write()
    metrics.leave_out(time.perf_counter() - started)
    return False


def _gives_up_reading(stop_signal: StopSignal) -> bool:
    """True if a hanging read is given up: alone at once, with other processes after a while."""
    if not stop_signal.told:
        return False
    return jax.process_count() == 1 or time.monotonic() - stop_signal.since > HANGING_SECONDS


def _leave_hanging_read(stop_signal: StopSignal, done: int) -> None:
    """Returns if this process is alone and can save; else ends it.

    The other processes wait for its rows in the next step, so it cannot save with them.
    """
    if jax.process_count() == 1:
        logging.info("told to stop: saving step %d, not waiting for its next batch", done)
        return
    report = (
        f"error: told to stop, but the batch after step {done} has not been read within "
        f"{HANGING_SECONDS:.0f} s: a file or a file server hangs. What was done after the newest "
        "checkpoint is lost."
    )
    processes.fail(report, expected=True, status=stop_signal.status)


def to_device(batch: Batch, mesh: Mesh) -> Batch:
    """A batch of this process's numpy arrays as global arrays, rows and pairs over row shards."""
    rows, pairs = sharding.chunked_rows(mesh), NamedSharding(mesh, P(sharding.ROWS))

    def place(array: Any, where: NamedSharding) -> jax.Array:
        return sharding.to_global(array, where)

    return Batch(
        groups=jax.tree.map(lambda x: place(x, rows), batch.groups),
        query=place(batch.query, pairs),
        positive=place(batch.positive, pairs),
        negative=place(batch.negative, pairs),
        target_id=jax.tree.map(lambda x: place(x, rows), batch.target_id),
        source=place(batch.source, pairs),
        query_id=None if batch.query_id is None else place(batch.query_id, pairs),
        scores=None if batch.scores is None else place(batch.scores, pairs),
        grade=None if batch.grade is None else place(batch.grade, pairs),
    )
