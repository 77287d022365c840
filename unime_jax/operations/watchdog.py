"""Hang detector: dumps stacks and exits when no step completes in time.

A lost device or worker often shows as a collective that never returns, a dead file server as a
read that never does: no error, no progress, and a machine that is paid for.
"""

import contextlib
import faulthandler
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO

from absl import logging

from unime_jax import files
from unime_jax.operations import exits

STATUS = 75  # of a process that a watchdog ended: "temporary failure, try again" in sysexits.h

_current: "Watchdog | None" = None


def progress() -> None:
    """`Watchdog.beat` of the process's watchdog, if there is one and it is in a phase."""
    if _current is not None and _current.in_phase:
        _current.beat()


def phase(what: str, seconds: float) -> contextlib.AbstractContextManager[None]:
    """`Watchdog.phase` of the process's watchdog, if there is one."""
    return contextlib.nullcontext() if _current is None else _current.phase(what, seconds)


class Watchdog:
    """A thread that expects a `beat()` every `seconds`, as a context manager around the work.

    Outside of any `phase` it watches steps, from the first beat on. If no beat comes in time, the
    stacks of all threads go to stderr and to `stacks`, and the process ends with `STATUS`.

    Args:
      seconds: 0: no limit.
      exit: False: the process goes on, and is watched again from the next beat.
    """

    def __init__(self, stacks: files.Path, *, seconds: float, exit: bool):
        self._stacks, self._exit = stacks, exit
        self._what, self._seconds = "no step has finished", seconds
        self._last: float | None = None
        self.in_phase = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        global _current
        _current = self
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = None
        self._end.set()
        self._thread.join()

    def beat(self) -> None:
        self._last = time.monotonic()

    @contextlib.contextmanager
    def phase(self, what: str, seconds: float) -> Iterator[None]:
        """Another limit for the work inside.

        Args:
          what: the message if no beat comes in time: "no shard was written".
          seconds: 0: no limit.
        """
        before = self._what, self._seconds, self._last is not None, self.in_phase
        self._what, self._seconds, self.in_phase = what, seconds, True
        self.beat()
        try:
            yield
        finally:
            self._last = None  # nothing is due between the two
            self._what, self._seconds, watched, self.in_phase = before
            if watched:
                self.beat()

    def _watch(self) -> None:
        while not self._end.wait(min(self._seconds / 10 or 1.0, 1.0)):
            what, seconds, last = self._what, self._seconds, self._last
            if not seconds or last is None or time.monotonic() - last < seconds:
                continue
            self._last = None
            self._tell(what, seconds)
            if self._exit:
                exits.exit_now(STATUS)

    def _tell(self, what: str, seconds: float) -> None:
        consequence = f"ending with status {STATUS}" if self._exit else "waiting on"
        logging.error(
            "%s for %g s: stacks of all threads are in %s; %s",
            what,
            seconds,
            self._stacks,
            consequence,
        )
        # stderr may be a closed pipe and the disk may be full, which must not keep it from ending
        try:
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        except (OSError, ValueError, RuntimeError) as error:
            logging.error("no stacks on stderr: %s", error)
        writer = threading.Thread(target=self._write_stacks, name="stacks", daemon=True)
        writer.start()
        writer.join(exits.SECONDS)  # the file server may be what hangs

    def _write_stacks(self) -> None:
        try:
            if isinstance(self._stacks, pathlib.Path):
                with self._stacks.open("a") as file:
                    _dump(file)
                return
            with tempfile.TemporaryFile("w+") as file:
                _dump(file)
                file.seek(0)
                files.append(self._stacks, file.read())
        except OSError as error:
            logging.error("no stacks in %s: %s", self._stacks, error)


def _dump(file: IO[str]) -> None:
    file.write(time.strftime("%Y-%m-%d %H:%M:%S\n"))
    file.flush()
    faulthandler.dump_traceback(file, all_threads=True)
