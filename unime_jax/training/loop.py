"""The training loop: batches to steps, metrics, checkpoints, and a clean stop when told to."""

import time
from collections.abc import Sequence
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
from unime_jax.operations import compilation_cache, cross_process, processes, watchdog
from unime_jax.operations.goodput import Goodput
from unime_jax.operations.profiling import ProfileWindow
from unime_jax.operations.stop import StopSignal
from unime_jax.training import outcome, step, tally
from unime_jax.training.checkpoint import Checkpoints
from unime_jax.training.metrics import MetricsWriter

# A read that hangs in one of several processes, which cannot save without each other.
HANGING_SECONDS = 15.0


def run(
    settings: config.TrainConfig,
    mesh: Mesh,
    workdir: files.Path,
    train_step: Wrapped,
    now: step.TrainState,
    data: Reader[tuple[Batch, PackInfo]],
    checkpoints: Checkpoints,
    goodput: Goodput,
    stop_signal: StopSignal,
    sources: Sequence[str],
    monitor: outcome.Monitor,
) -> step.TrainState:
    """Steps until done or told to stop; metrics are read one step late to keep the device busy.

    `train_step` takes a state and a batch to the next state and metrics. `sources` are the names
    that `Batch.source` counts.

    Raises:
      RuntimeError: too many non-finite steps in a row (`outcome.EveryStepSkipped`: and none
        before), or a checkpoint that cannot be written.
      ValueError: too many examples that cannot be used.
    """
    bad = quarantine.Quarantine(
        workdir / "quarantine.jsonl",
        settings.data.max_bad_share,
        process_index=jax.process_index(),
    )
    sum_over_processes = cross_process.sum_over_processes(mesh)
    tallied = tally.Tally(sources)  # since the last line of metrics
    done = begun = int(now.step)
    compiled: Compiled | None = None
    pending: tuple[int, dict[str, jax.Array], cross_process.Sums, dict[str, float]] | None = None
    told = False  # any of the processes to stop
    with (
        MetricsWriter(
            workdir,
            total_steps=settings.steps,
            wandb_project=settings.wandb_project,
            resume_step=done,
        ) as writer,
        ProfileWindow(
            workdir / "profile",
            first_step=settings.profile.first_step,
            steps=settings.profile.steps,
        ) as profile,
        watchdog.phase("no step has finished", settings.watchdog.seconds),
        goodput.spend("compute"),
    ):

        def report_pending(*, saving: bool = False) -> bool:
            """Writes the metrics that are due; whether the step had a finite loss and gradient.

            A step that is saved has a line, as a run that goes on from there counts anew.
            """
            nonlocal told
            if pending is None:
                return True
            number, metrics, sums, host = pending
            found = jax.device_get(metrics)
            by_source = found.pop("source_loss"), found.pop("source_rows")
            values = {name: float(value) for name, value in found.items()}
            total = sums()
            watchdog.progress()
            told = told or total["told"] > 0
            tallied.add(total, *by_source)
            host |= {"pad_fraction": total["pad_fraction"] / jax.process_count()}
            in_a_row = int(values["skipped_in_a_row"])
            gives_up = in_a_row >= settings.max_skipped
            is_due = number % settings.log_every == 0 or number == settings.steps
            if gives_up or saving or is_due:
                writer.write(number, values | host | tallied.take())
            if jax.process_index() == 0:
                monitor.observe(number, values)
            if gives_up and values["skipped_steps"] >= number:
                raise outcome.EveryStepSkipped(f"none of the first {number} steps was finite")
            if gives_up:
                raise RuntimeError(
                    f"{settings.max_skipped} steps in a row had a loss or gradient that is not "
                    f"finite (last: step {number}, loss {values['loss']}). Lower "
                    "optimizer.learning_rate or look at the batch; the last good checkpoint is "
                    f"in {workdir / 'checkpoints'}."
                )
            bad.count(int(total["replaced_examples"]), int(total["read"]))
            return in_a_row == 0

        def save(*, last: bool) -> None:
            nonlocal pending
            finite = report_pending(saving=True)
            pending = None
            writer.flush()
            bad.merge()
            # A run that is failing must not push its last good checkpoints out.
            if finite or last:
                with goodput.spend("checkpoint"):
                    checkpoints.save(done, now)
                goodput.saved(done)
            watchdog.progress()

        last = time.perf_counter()
        while done < settings.steps:
            asked = time.perf_counter()
            try:
                with goodput.spend("input"):
                    read = data.next(lambda: _gives_up_reading(stop_signal))
            except quarantine.UnusableSource as error:
                bad.note(error.items)
                bad.merge()
                raise ValueError(f"{error}. All are listed in {bad.path}") from error
            if read is None:
                if jax.process_count() > 1:
                    _leave_the_others(stop_signal, done)
                logging.info("told to stop: saving step %d, not waiting for its next batch", done)
                save(last=True)
                break
            batch, info = read
            waited = time.perf_counter() - asked
            bad.note(info.bad)
            profile.before(done + 1)
            placed = to_device(batch, mesh)
            if compiled is None:
                what = f"the training step of {settings.batch_size} pairs"
                with (
                    goodput.spend("compile"),
                    compilation_cache.announced(what),
                    watchdog.phase("the step has not compiled", settings.watchdog.compile_seconds),
                ):
                    compiled = train_step.lower(now, placed).compile()
                    # CPUs wait 30 s where they connect; compilations may end further apart.
                    processes.barrier("step compiled")
            now, metrics = compiled(now, placed)
            if done == begun:
                stop_signal.unsaved = True
            done += 1
            profile.after(done, metrics)
            sums = sum_over_processes(
                {
                    "told": stop_signal.told,
                    "read": info.read,
                    "pad_fraction": info.pad_fraction,
                }
                | tally.counts(info)
            )
            report_pending()
            seconds, last = time.perf_counter() - last, time.perf_counter()
            host = {
                "pairs_per_second": settings.batch_size / seconds,
                "data_wait_share": waited / seconds,
            }
            pending = done, metrics, sums, host
            checkpoints.check()
            goodput.stepped(done)
            stop = stop_signal.told if jax.process_count() == 1 else told
            if checkpoints.is_due(done) or stop or done == settings.steps:
                save(last=stop or done == settings.steps)
            if stop:
                logging.info("told to stop: saving step %d in %s", done, workdir / "checkpoints")
                break
    return now


def _gives_up_reading(stop_signal: StopSignal) -> bool:
    """One process alone can save what it has done at once; of several, each gives a read time."""
    if not stop_signal.told:
        return False
    return jax.process_count() == 1 or time.monotonic() - stop_signal.since > HANGING_SECONDS


def _leave_the_others(stop_signal: StopSignal, done: int) -> None:
    """The others are in the midst of the next step, and wait for this process's rows."""
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
    )
