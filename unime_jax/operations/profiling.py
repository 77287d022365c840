"""A trace of some steps, for TensorBoard's profiler, xprof or Perfetto."""

from typing import Any

import jax
from absl import logging

from unime_jax import files


class ProfileWindow:
    """Traces steps first_step ... first_step + steps - 1 into `folder`, in process 0.

    A context manager, so that a trace that is running when a loop ends is written, too. A process
    that begins inside of the window traces what is left of it; a window that includes a process's
    first step includes its compilation.
    """

    def __init__(self, folder: files.Path, *, first_step: int, steps: int):
        self._folder = folder
        self._growing = files.GrowingFolder(folder)  # the profiler writes into local folders
        traces = steps > 0 and jax.process_index() == 0
        self._steps = range(first_step, first_step + steps) if traces else range(0)
        self._running = False

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Call it before each step, with the step's number."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(self._growing.local)
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Call it after each step with what the step returned, which may still be on its way."""
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._growing.sync()
            logging.info("a profile is in %s", self._folder)
