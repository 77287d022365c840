"""A thread that notices when steps no longer finish, says where everybody stands, and ends that.

A device or a worker that is lost often shows as a collective that never returns: no error, no
progress, and a machine that is paid for.
"""

import faulthandler
import os
import pathlib
import sys
import threading
import time

from absl import logging

STATUS = 75  # of a process that a watchdog ended: "temporary failure, try again" in sysexits.h


class Watchdog:
    """A context manager around a loop that calls `beat()` as each step finishes.

    It watches from the first beat on, so that a long compilation before it counts for nothing. If
    no beat comes for `seconds`, the stacks of all threads go to stderr and to `stacks`, and the
    process ends with `STATUS`; without `exit` it goes on, and is watched again from the next beat.

    Args:
      seconds: 0: never.
    """

    def __init__(self, stacks: pathlib.Path, *, seconds: float, exit: bool):
        self._stacks, self._seconds, self._exit = stacks, seconds, exit
        self._last: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self) -> None:
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._end.wait(min(self._seconds / 10, 10.0)):
            last = self._last
            if last is None or time.monotonic() - last < self._seconds:
                continue
            self._last = None
            self._tell()
            if self._exit:
                os._exit(STATUS)

    def _tell(self) -> None:
        consequence = f"ending with status {STATUS}" if self._exit else "waiting on"
        logging.error(
            "no step has finished for %g s: stacks of all threads are in %s; %s",
            self._seconds,
            self._stacks,
            consequence,
        )
        # stderr may be a closed pipe and the disk may be full, which must not keep it from ending
        try:
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        except (OSError, ValueError, RuntimeError) as error:
            logging.error("no stacks on stderr: %s", error)
        try:
            with self._stacks.open("a") as file:
                file.write(time.strftime("%Y-%m-%d %H:%M:%S\n"))
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            logging.error("no stacks in %s: %s", self._stacks, error)
