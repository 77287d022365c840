"""Real processes on this machine that are one run: the command line, on a few virtual CPUs each."""

import dataclasses
import os
import pathlib
import re
import socket
import time
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from tests import children
from tests.jobs import tiny_run
from unime_jax import main

DEVICES = 8  # of all processes together
LIMIT = 420  # seconds
# Only process 0 finds everything in a cache, and the CPU's collectives give up on a process that
# comes 30 s later.
NO_CACHE = {"jax_enable_compilation_cache": False}


@dataclasses.dataclass(frozen=True)
class Run:
    """Processes that were started together, and what each has said so far."""

    processes: Sequence[children.Child]

    def said(self, process: int) -> str:
        return self.processes[process].said()

    def wait(self) -> list[int]:
        """Return codes, by process; all are killed when it takes too long."""
        end = time.monotonic() + LIMIT
        try:
            return [one.wait(max(0.1, end - time.monotonic())) for one in self.processes]
        finally:
            self.kill()

    def seconds_to_end(self) -> float:
        """How long the processes live on when this is called."""
        began = time.monotonic()
        self.wait()
        return time.monotonic() - began

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Fails if a process ends before `condition` holds."""
        end = time.monotonic() + LIMIT
        while not condition():
            ended = [p for p, one in enumerate(self.processes) if one.poll() is not None]
            if ended or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"process {ended}: {self.said(ended[0] if ended else 0)}")
            time.sleep(0.01)

    def kill(self) -> None:
        for one in self.processes:
            one.kill()
            one.wait()


def start(
    config: ConfigDict | Sequence[ConfigDict],
    workdir: pathlib.Path,
    processes: int,
    *flags: str,
    experiment: str = "experiments/stage2.py",
    before: Callable[[], None] | None = None,
) -> Run:
    """The training command, once for each process, on equal parts of `DEVICES`.

    `before` is called first in each of them. Logs lie beside `workdir`. Each process may have a
    config of its own.
    """
    configs = [config] * processes if isinstance(config, ConfigDict) else config
    shared = [
        *(f"--workdir={workdir}", f"--coordinator=localhost:{free_port()}"),
        *(f"--num_processes={processes}", *flags),
    ]
    started = [
        children.start(
            command,
            before,
            output=workdir.with_name(f"{workdir.name}_{number}_of_{processes}.log"),
            argv=[*shared, f"--process_id={number}", *tiny_run.flags(own, experiment)],
            environment=environment(processes),
            jax_options=NO_CACHE,
        )
        for number, own in enumerate(configs)
    ]
    return Run(started)


def command(before: Callable[[], None] | None) -> None:
    if before is not None:
        before()
    main.run()


def environment(processes: int) -> dict[str, str]:
    """Of each of so many processes."""
    count = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    others = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    return os.environ | {"XLA_FLAGS": f"{others} {count}"}


def finish(*arguments, **options) -> Run:
    """As `start`; all processes must end well."""
    run = start(*arguments, **options)
    codes = run.wait()
    texts = [f"--- process {p}\n{run.said(p)}" for p, code in enumerate(codes) if code]
    assert codes == [0] * len(codes), "\n".join(texts)
    return run


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]
