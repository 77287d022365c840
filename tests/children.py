"""Processes that cost no imports: forked from a server that has made them, one a test session.

An interpreter with this package takes seconds of CPU to start. Tests of a start itself, of what
libraries say at it for example, need `subprocess`; those of what a process then does are as well
served by a fork, which runs the same code.
"""

import atexit
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection

import jax

from tests import collector

# The last three are most of what such a process does: what opening a model imports, what a job
# does, which the command imports when it knows which, and what its training does.
PRELOADED = (
    "tests.without_torch",
    "unime_jax.main",
    "tests.jobs.tiny_run",
    "transformers.models.auto.tokenization_auto",
    "unime_jax.jobs.train",
    "tensorboardX.event_file_writer",
)
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(list(PRELOADED))


class Child:
    """A process with the methods of `subprocess.Popen` that tests use; it says things to a file."""

    def __init__(self, process: multiprocessing.process.BaseProcess, output: pathlib.Path):
        self._process, self._output = process, output

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def said(self) -> str:
        """What stdout and stderr got so far."""
        return self._output.read_text()

    def poll(self) -> int | None:
        connection.wait([self._process.sentinel], 0)
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._output), timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def start(
    call: Callable[..., object],
    *arguments: object,
    output: pathlib.Path,
    argv: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
    jax_options: Mapping[str, object] | None = None,
    starts_others: bool = False,
) -> Child:
    """A process that does `call(*arguments)`, which is found by its module and name, and ends.

    `argv` are what the command line would have after the program's name. JAX has read its own
    variables of the environment before: `jax_options` are given to `jax.config`. A process that
    `starts_others` may have processes of its own, and is waited for when the caller's ends.
    """
    given = (call, arguments, output, list(argv), dict(environment), dict(jax_options or {}))
    process = _SERVER.Process(target=_run, args=given, daemon=not starts_others)
    output.touch()
    process.start()
    return Child(process, output)


def _run(
    call: Callable[..., object],
    arguments: Sequence[object],
    output: pathlib.Path,
    argv: Sequence[str],
    environment: Mapping[str, str],
    jax_options: Mapping[str, object],
) -> None:
    collector.begin_after_imports()  # the server's
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [sys.argv[0], *argv]
    os.environ.clear()
    os.environ.update(environment)
    for name, value in jax_options.items():
        jax.config.update(name, value)
    status: object = 0
    try:
        call(*arguments)
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            sys.stderr.write(f"{status}\n")
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    # As an interpreter that ends, which a forked one does not.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.exit(status)
