"""Immediate process exit, also from blocked threads and compiled code.

`os._exit` runs no `finally` and no `atexit`. Callbacks run first, for a few seconds at most, to
release a lock that other hosts would wait for, for example.
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

SECONDS = 3.0  # for all callbacks: the file system may be what hangs

_callbacks: list[Callable[[], None]] = []


def before_exit(callback: Callable[[], None]) -> Callable[[], None]:
    """Registers a callback of `exit_now`; returns a function that unregisters it."""
    _callbacks.append(callback)

    def forget() -> None:
        if callback in _callbacks:
            _callbacks.remove(callback)

    return forget


def exit_now(status: int) -> NoReturn:
    """Ends the process from any thread, whatever the other threads wait for."""

    def call_all() -> None:
        for callback in reversed(_callbacks.copy()):
            callback()

    thread = threading.Thread(target=call_all, name="before exit", daemon=True)
    thread.start()
    thread.join(SECONDS)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a closed pipe, a full disk
            continue
    os._exit(status)
