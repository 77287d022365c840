"""Runs of the embed job in forked processes, which cost no imports: killed, or two at a time.

In <folder>/straight nothing disturbs a run; <folder>/pair is of two processes that know of each
other. In <folder>/killed a run is killed at each moment, and the last one is not; there and in
<folder>/plain, where it is left alone, embeddings are `plain`. A moment is (n, stage): SIGKILL at
the n-th file that a run writes: "half" of it is written, all is but it is still "unnamed", or
"after" that.
"""

import itertools
import json
import os
import pathlib
import signal
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from unime_jax import files
from unime_jax.data.embedding_store import RECORD
from unime_jax.inference import opened_model
from unime_jax.jobs import embed

JOIN_SECONDS = 60
WIDTH = 48  # of the model
LEAVE_SECONDS = 2  # that a process waits for the others to leave, too


def forked(call: Callable[[], None]) -> int:
    """Starts `call` in a child; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        call()
        status = 0
    finally:
        os._exit(status)


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def plain(*_: object) -> Callable[..., jax.Array]:
    """In the place of `make_encode`: embeddings that differ by token, and compile at once."""

    def encode(trainable, frozen, inputs):
        own = jnp.arange(inputs.tokens.shape[1]) < inputs.length[:, None]
        total = jnp.where(own, inputs.tokens, 0).sum(axis=1)
        vectors = jnp.sin(total[:, None] * jnp.arange(1.0, WIDTH + 1))
        return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)

    return encode


def kill_at(moment: int, stage: str) -> None:
    """Lets this process kill itself in the midst of writing a file."""
    write_whole, calls = files.write_whole, itertools.count(1)

    def dies(file: pathlib.Path, content: str | memoryview) -> None:
        if file.suffix not in (".npy", ".ids") and file.name != RECORD:  # not of the store
            write_whole(file, content)
            return
        last = next(calls) == moment
        if last and stage == "half":
            pathlib.Path.open = open_half
        elif last and stage == "unnamed":
            os.fsync = kill
        write_whole(file, content)
        if last:
            kill()

    files.write_whole = dies


def open_half(path: pathlib.Path, mode: str = "r", *arguments):
    return (Half if mode == "wb" else open)(path, mode, *arguments)


def kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Half:
    """A file of which only the first half gets to the disk."""

    def __init__(self, *arguments):
        self._file = open(*arguments)  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, content: bytes | memoryview) -> None:
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        kill()


def killed(config: ConfigDict, workdir: pathlib.Path, moments: list[tuple[int, str]]) -> list[int]:
    found = []
    for moment, stage in [*moments, (0, "")]:

        def run(moment=moment, stage=stage):
            kill_at(moment, stage)
            opened_model.make_encode = plain
            embed.run(config, workdir)

        found.append(status_of(forked(run)))
    return found


def pair(config: ConfigDict, workdir: pathlib.Path, port: int) -> list[int]:
    """Two children, which run from now on."""

    def run(process: int) -> None:
        jax.distributed.initialize(
            f"localhost:{port}",
            2,
            process,
            initialization_timeout=JOIN_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
        assert len(jax.devices()) == 2  # here each waits for the other, as in main
        embed.POLL_SECONDS = 0.1
        if process:  # begins when the other has done its part, and would long have left
            while len(list(workdir.glob("vectors/*.npy"))) < 2:
                time.sleep(0.1)
            time.sleep(LEAVE_SECONDS + 1)
        embed.run(config, workdir)
        jax.distributed.shutdown()  # as at the exit of an interpreter: waits for the other

    return [forked(lambda p=p: run(p)) for p in range(2)]


def run_all(config: dict, folder: pathlib.Path, moments: list[tuple[int, str]], port: int) -> None:
    """Leaves in <folder>/ends.json by folder how each process ended, -9 for SIGKILL."""
    given = ConfigDict(config)
    waiting = pair(given, folder / "pair", port)  # they sleep for seconds: beside the others
    statuses = {
        "straight": [status_of(forked(lambda: embed.run(given, folder / "straight")))],
        "plain": killed(given, folder / "plain", []),
        "killed": killed(given, folder / "killed", moments),
        "pair": [status_of(child) for child in waiting],
    }
    (folder / "ends.json").write_text(json.dumps(statuses))
