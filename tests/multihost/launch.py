"""Real processes on this machine that are one run: the command line, on a few virtual CPUs each."""

import dataclasses
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from tests.jobs import tiny_run

DEVICES = 8  # of all processes together
LIMIT = 420  # seconds


@dataclasses.dataclass(frozen=True)
class Run:
    """Processes that were started together, and what each has said so far."""

    processes: Sequence[subprocess.Popen]
    logs: Sequence[pathlib.Path]

    def said(self, process: int) -> str:
        return self.logs[process].read_text()

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
    script: Sequence[str] = ("-m", "unime_jax.main"),
) -> Run:
    """The training command, once for each process, on equal parts of `DEVICES`.

    `script` takes the place of unime_jax.main. Logs lie beside `workdir`. Each process may have a
    config of its own.
    """
    configs = [config] * processes if isinstance(config, ConfigDict) else config
    command = [
        *(sys.executable, *script),
        *(f"--workdir={workdir}", f"--coordinator=localhost:{free_port()}"),
        *(f"--num_processes={processes}", *flags),
    ]
    logs = [workdir.with_name(f"{workdir.name}_{p}_of_{processes}.log") for p in range(processes)]
    started = []
    for number, log in enumerate(logs):
        with log.open("w") as output:
            started.append(
                subprocess.Popen(
                    [*command, f"--process_id={number}"]
                    + tiny_run.flags(configs[number], experiment),
                    cwd=tiny_run.ROOT,
                    env=environment(processes),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return Run(started, logs)


def environment(processes: int) -> dict[str, str]:
    """Of each of so many processes.

    None uses a compilation cache: only process 0 finds everything there, and the CPU's collectives
    give up on a process that comes 30 s later.
    """
    count = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    others = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    return os.environ | {
        "XLA_FLAGS": f"{others} {count}",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }


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
