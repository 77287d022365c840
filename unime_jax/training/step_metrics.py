"""Metrics of training steps: fetched once a step, a step late, then written and judged."""

import dataclasses
import time
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from unime_jax import config, files
from unime_jax.data import quarantine
from unime_jax.data.packing import PackInfo
from unime_jax.operations import cross_process, watchdog
from unime_jax.operations.stop import StopSignal
from unime_jax.training import outcome, tally
from unime_jax.training.metrics import MetricsWriter


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step whose results may still be on their way."""

    number: int
    metrics: dict[str, jax.Array]
    sums: cross_process.Sums
    timings: dict[str, float]


class StepMetrics:
    """Metrics of each step, read while the device computes the next one.

    Args:
      sources: the names that `Batch.source` counts.
    """

    def __init__(
        self,
        settings: config.TrainConfig,
        mesh: Mesh,
        workdir: files.Path,
        sources: Sequence[str],
        writer: MetricsWriter,
        monitor: outcome.Monitor,
        stop_signal: StopSignal,
    ):
        self._settings, self._workdir = settings, workdir
        self._writer, self._monitor, self._stop_signal = writer, monitor, stop_signal
        self._quarantine = quarantine.Quarantine(
            workdir / "quarantine.jsonl",
            settings.data.max_bad_share,
            process_index=jax.process_index(),
        )
        self._tally = tally.Tally(sources)  # since the last line of metrics
        self._start_sums = cross_process.sum_over_processes(mesh)
        self._pending: _Step | None = None
        self._told = False
        self._last = time.perf_counter()

    @property
    def told_to_stop(self) -> bool:
        """True if any process was told to stop; all processes agree, a step late."""
        return self._stop_signal.told if jax.process_count() == 1 else self._told

    def add(
        self, number: int, metrics: dict[str, jax.Array], info: PackInfo, waited: float
    ) -> None:
        """Takes a step that was just dispatched, and reports the one before it.

        Args:
          waited: seconds for the batch.

        Raises: see `report`.
        """
        self._quarantine.note(info.bad)
        own = {
            "told": self._stop_signal.told,
            "read": info.read,
            "pad_fraction": info.pad_fraction,
        }
        sums = self._start_sums(own | tally.counts(info))
        self.report()
        seconds, self._last = time.perf_counter() - self._last, time.perf_counter()
        timings = {
            "pairs_per_second": self._settings.batch_size / seconds,
            "data_wait_share": waited / seconds,
        }
        self._pending = _Step(number, metrics, sums, timings)

    def report(self, *, saving: bool = False) -> bool:
        """Waits for the pending step; whether it had a finite loss and gradient, or there is none.

        It is written if a line is due, or if the step is saved: a run that goes on from there
        counts anew.

        Raises:
          RuntimeError: too many non-finite steps in a row (`outcome.EveryStepSkipped`: and none
            before).
          ValueError: too many examples that cannot be used.
        """
        if self._pending is None:
            return True
        step, self._pending = self._pending, None
        fetched = jax.device_get(step.metrics)
        by_source = fetched.pop("source_loss"), fetched.pop("source_rows")
        values = {name: float(value) for name, value in fetched.items()}
        total = step.sums()
        watchdog.progress()
        self._told = self._told or total["told"] > 0
        self._tally.add(total, *by_source)
        skipped_in_a_row = int(values["skipped_in_a_row"])
        gives_up = skipped_in_a_row >= self._settings.max_skipped
        is_due = step.number % self._settings.log_every == 0 or step.number == self._settings.steps
        if gives_up or saving or is_due:
            pad_fraction = total["pad_fraction"] / jax.process_count()
            host = step.timings | {"pad_fraction": pad_fraction}
            self._writer.write(step.number, values | host | self._tally.take())
        if jax.process_index() == 0:
            self._monitor.observe(step.number, values)
        if gives_up:
            self._give_up(step.number, values)
        self._quarantine.count(int(total["replaced_examples"]), int(total["read"]))
        return skipped_in_a_row == 0

    def leave_out(self, seconds: float) -> None:
        """Leaves seconds that passed between two steps out of the rate of the next one."""
        self._last += seconds

    def flush(self) -> bool:
        """`report` before a save, with all lines flushed to the disk."""
        is_finite = self.report(saving=True)
        self._writer.flush()
        self._quarantine.merge()
        return is_finite

    def refuse(self, items: Sequence[quarantine.BadItem]) -> files.Path:
        """Lists the items of an unusable source in the quarantine; returns its file."""
        self._quarantine.note(items)
        self._quarantine.merge()
        return self._quarantine.path

    def _give_up(self, number: int, values: dict[str, float]) -> None:
        if values["skipped_steps"] >= number:
            raise outcome.EveryStepSkipped(f"none of the first {number} steps was finite")
        raise RuntimeError(
            f"{self._settings.max_skipped} steps in a row had a loss or gradient that is not "
            f"finite (last: step {number}, loss {values['loss']}). Lower "
            "optimizer.learning_rate or look at the batch; the last good checkpoint is "
            f"in {self._workdir / 'checkpoints'}."
        )
