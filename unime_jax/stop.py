"""SIGTERM: steps that are not saved yet are saved first; where there are none, the end is at once.

Schedulers send it some time before they take a machine away. The exit status is 143 = 128 + SIGTERM
either way, which they read as "not finished": the same command goes on from there.
"""

import os
import signal
import threading

from absl import logging

STATUS = 128 + signal.SIGTERM


class StopSignal:
    """A context manager for the main thread; in it, `told` says whether SIGTERM has come.

    While `unsaved` is set, the caller sees to the end itself. Otherwise the process ends without
    delay, also where Python cannot react to a signal: in a long compilation.
    """

    def __init__(self) -> None:
        self.told = False
        self.unsaved = False

    def __enter__(self) -> "StopSignal":
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # Handlers in Python wait for the main thread to leave compiled code. The byte that the
        # interpreter writes for each signal does not, and a thread can wait for that.
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handler = signal.signal(signal.SIGTERM, lambda *_: None)
        self._thread = threading.Thread(target=self._listen, name="stop_signal", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _listen(self) -> None:
        while byte := os.read(self._read, 1):
            if byte[0] != signal.SIGTERM:
                continue
            self.told = True
            if not self.unsaved:
                logging.info("told to stop: nothing to save, ending with status %d", STATUS)
                os._exit(STATUS)
