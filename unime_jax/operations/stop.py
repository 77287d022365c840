"""On SIGTERM: save unsaved steps and exit 143; exit at once if none. Ctrl-C: likewise, with 130.

Schedulers send SIGTERM some time before they take a machine away. The exit status 143 = 128 +
SIGTERM reads as "not finished" to them: the same command goes on from there. A second Ctrl-C
(SIGINT) does not wait for anything.
"""

import os
import signal
import threading
import time

from absl import logging
from jax.sharding import Mesh

from unime_jax.operations import cross_process, exits

STATUS = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT
NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
RESUMES = "the same command goes on from there"


class StopSignal:
    """Signal handlers as a context manager, for the main thread.

    Attributes:
      told: whether a signal has come.
      unsaved: set by a caller that has steps to save, and then ends by itself. Otherwise a signal
        ends the process without delay, also in a long compilation, where Python cannot react.
      status: the exit status of a run that is told to stop, by the first signal that came.
      since: when that came, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.told = False
        self.unsaved = False
        self.status: int = STATUS
        self.since = 0.0

    def __enter__(self) -> "StopSignal":
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # Handlers in Python wait for the main thread to leave compiled code. The byte that the
        # interpreter writes for each signal does not, and a thread can wait for that.
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in NAMES}
        self._thread = threading.Thread(target=self._listen, name="stop_signal", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _listen(self) -> None:
        while byte := os.read(self._read, 1):
            number = byte[0]
            if number not in NAMES:
                continue
            if self.told and number == signal.SIGINT:
                logging.info("Ctrl-C once more: ending with status %d, nothing more is saved", 130)
                exits.exit_now(INTERRUPTED)
            if not self.told:
                self.status, self.since = 128 + number, time.monotonic()
            self.told = True
            if not self.unsaved:
                logging.info(
                    "told to stop by %s: nothing to save, ending with status %d; the same command "
                    "goes on from what is there",
                    NAMES[signal.Signals(number)],
                    self.status,
                )
                exits.exit_now(self.status)
            if number == signal.SIGINT:
                logging.info(
                    "told to stop by Ctrl-C: saving first, then %s; Ctrl-C once more ends at once",
                    RESUMES,
                )


def any_told(stop_signal: StopSignal, mesh: Mesh) -> bool:
    """True if any process was told to stop. All call it, wait, and get the same answer."""
    return cross_process.sum_over_processes(mesh)({"told": stop_signal.told})()["told"] > 0
