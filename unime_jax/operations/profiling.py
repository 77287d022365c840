"""Profiler traces of a window of steps, for TensorBoard, xprof or Perfetto."""

from typing import Any

import jax
from absl import logging

from unime_jax import files
from unime_jax.operations.growing_files import GrowingFolder


class ProfileWindow:
    """Context manager that traces steps [first_step, first_step + steps) into `folder`.

    Only process 0 traces. A trace that still runs when the loop ends is written on exit. A process
    that starts inside the window traces the remaining steps. The first step of a process includes
    its compilation.
    """

    def __init__(self, folder: files.Path, *, first_step: int, steps: int):
        self._folder = folder
        self._growing = GrowingFolder(folder)  # the profiler writes into local folders
        traces = steps > 0 and jax.process_index() == 0
        self._steps = range(first_step, first_step + steps) if traces else range(0)
        self._running = False

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Starts the trace at the first step of the window; called before each step."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(self._growing.local)
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Ends the trace after the last step of the window; called after each step.

        `result` is the return value of the step, waited for at the end of the window.
        """
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._growing.sync()
            logging.info("a profile is in %s", self._folder)
