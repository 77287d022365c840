"""The training loop: batches to steps, metrics, checkpoints, and a clean stop on SIGTERM."""

import contextlib
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unime_jax import config, sharding, step
from unime_jax.batch import Batch
from unime_jax.checkpoint import Checkpoints
from unime_jax.data import quarantine
from unime_jax.metrics import MetricsWriter


def run(
    settings: config.TrainConfig,
    mesh: Mesh,
    workdir: pathlib.Path,
    train_step: Callable[[step.TrainState, Batch], tuple[step.TrainState, dict[str, jax.Array]]],
    now: step.TrainState,
    data: grain.DatasetIterator,
    checkpoints: Checkpoints,
) -> step.TrainState:
    """Steps until done or told to stop; metrics are read one step late to keep the device busy."""
    bad = quarantine.Quarantine(workdir / "quarantine.jsonl", settings.data.max_bad_share)
    done = int(now.step)
    pending: tuple[int, dict[str, jax.Array], dict[str, float]] | None = None
    with (
        _stop_signal() as told_to_stop,
        MetricsWriter(
            workdir,
            total_steps=settings.steps,
            wandb_project=settings.wandb_project,
            resume_step=done,
        ) as writer,
    ):

        def report_pending() -> bool:
            """Writes the metrics that are due; whether the step had a finite loss and gradient."""
            if pending is None:
                return True
            number, metrics, host = pending
            values = {name: float(value) for name, value in metrics.items()}
            in_a_row = int(values["skipped_in_a_row"])
            gives_up = in_a_row >= settings.max_skipped
            if gives_up or number % settings.log_every == 0 or number == settings.steps:
                writer.write(number, values | host)
            if gives_up:
                raise RuntimeError(
                    f"{settings.max_skipped} steps in a row had a loss or gradient that is not "
                    f"finite (last: step {number}, loss {values['loss']}). Lower "
                    "optimizer.learning_rate or look at the batch; the last good checkpoint is "
                    f"in {workdir / 'checkpoints'}."
                )
            return in_a_row == 0

        last = time.perf_counter()
        while done < settings.steps:
            asked = time.perf_counter()
            batch, info = next(data)
            waited = time.perf_counter() - asked
            bad.add(info.bad, info.read)
            now, metrics = train_step(now, to_device(batch, mesh))
            done += 1
            report_pending()
            seconds, last = time.perf_counter() - last, time.perf_counter()
            host = {
                "pairs_per_second": settings.batch_size / seconds,
                "data_wait_share": waited / seconds,
                "pad_fraction": info.pad_fraction,
                "duplicate_items": info.duplicates,
                "quarantined": len(bad),
            }
            pending = done, metrics, host
            stop = told_to_stop()
            if checkpoints.is_due(done) or stop or done == settings.steps:
                finite = report_pending()
                pending = None
                # A run that is failing must not push its last good checkpoints out.
                if finite or stop or done == settings.steps:
                    checkpoints.save(done, now, data)
            if stop:
                logging.info("told to stop: saved step %d in %s", done, workdir / "checkpoints")
                break
    return now


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


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM into a question to ask between steps; all processes get the same answer."""
    told = False

    def tell(*_: object) -> None:
        nonlocal told
        told = True

    def ask() -> bool:
        if jax.process_count() == 1:
            return told
        return bool(multihost_utils.process_allgather(np.array(told)).any())

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield ask
    finally:
        signal.signal(signal.SIGTERM, before)
