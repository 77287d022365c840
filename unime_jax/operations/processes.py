"""Several processes that are one run: they join, and when one of them fails, all end and say why.

A process that raises tells the others through JAX's coordination service. One that is killed
cannot: its silence is noticed there after the heartbeat timeout, and JAX aborts the others, with
words for its developers. Each process therefore has a witness: a shell that reads from a pipe, and
says what to do when the process ends without having said it.
"""

import atexit
import collections
import subprocess
import sys
import threading
import time
from typing import Any

import jax
from absl import logging

# The service's key-value store is what Orbax uses, too, but its client has no public name.
from jax._src import distributed

from unime_jax import files
from unime_jax.operations import exits

RESUMES = "The same command, given to all of them again, resumes from the newest checkpoint."
_FAILED = "unime_jax/failed"
_POLL_SECONDS = 1.0
_LINGER_SECONDS = 2.0  # until all have read why, before anything breaks because one is gone
_SEEN_SECONDS = 10.0  # until what one host writes shows on another one
_DAYS = 7 * 24 * 3600 * 1000  # in ms: who is done early waits as long as the others live

_leaving = threading.Event()
_ending = threading.Lock()  # taken for good by the thread that ends the process
_watcher: threading.Thread | None = None
_calls: collections.Counter[str] = collections.Counter()  # of each barrier

# A line through the pipe: all is said. Its end without one: the process was aborted or killed.
# Signals to the whole group, as schedulers send them, are not for the witness.
_WITNESS = 'trap "" HUP INT TERM; read -r said || printf "%s\\n" "$1" >&2'
_witness: subprocess.Popen[bytes] | None = None


def join(
    *,
    coordinator: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
    join_seconds: int = 300,
    heartbeat_seconds: int = 100,
) -> None:
    """Joins the other processes, before anything else is asked of JAX.

    Without arguments JAX finds them by itself: on TPU pods, in SLURM and under Open MPI. Otherwise
    process 0 listens at `coordinator`, host:port. A process that is silent for `heartbeat_seconds`
    counts as dead. When the others do not come within `join_seconds`, this process says so on
    stderr and exits.

    Raises:
      ValueError: the arguments do not make sense, or JAX finds no cluster.
    """
    global _watcher
    _check(coordinator, process_id, num_processes)
    # JAX would catch SIGTERM and do nothing; the training loop has its own way to stop.
    jax.config.update("jax_enable_preemption_service", False)
    late = threading.Timer(join_seconds, _give_up, [join_seconds])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=join_seconds + 60,  # it aborts, so `_give_up` comes first
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed: JAX finds no cluster here ({error}). On a TPU pod, in SLURM and under "
            "Open MPI it does; elsewhere, give --coordinator=host:port, --process_id and "
            "--num_processes."
        ) from error
    finally:
        late.cancel()
    state = distributed.global_state
    logging.info(
        "process %d of %d joined through %s; if one dies, all end within about %d s; the same "
        "command then resumes",
        state.process_id,
        state.num_processes,
        state.coordinator_address,
        heartbeat_seconds,
    )
    _leaving.clear()
    _call_a_witness(state.process_id, state.num_processes)
    _watcher = threading.Thread(target=_watch, name="other processes", daemon=True)
    _watcher.start()


def check_shared(folder: files.Path) -> None:
    """Checks that other processes see in `folder` a file that process 0 has written there.

    Raises:
      ValueError: they do not, or it cannot be written.
    """
    state = distributed.global_state
    if _watcher is None or state.num_processes == 1:
        return
    if state.process_id == 0:
        name = f".shared-{time.time_ns()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        except OSError as error:
            raise ValueError(
                f"--workdir={folder} cannot be written: {error.strerror or error}."
            ) from error
        _client().key_value_set("unime_jax/shared", name)
    name = _client().blocking_key_value_get("unime_jax/shared", _DAYS)
    end = time.monotonic() + _SEEN_SECONDS
    while not (folder / name).exists():
        if time.monotonic() > end:
            raise ValueError(
                f"--workdir={folder} of process {state.process_id} is not process 0's: it does not "
                "see the files that process 0 writes there. Use a folder on a file system that all "
                "hosts share, mounted under the same path."
            )
        time.sleep(0.1)
    barrier("shared")
    if state.process_id == 0:
        (folder / name).unlink()


def barrier(name: str) -> None:
    """Waits until all have come here, however long the work is that one of them does before.

    A computation over all devices would do, too, but there CPUs wait for 30 s at most. The n-th
    call with a name meets the n-th ones of the others.
    """
    _calls[name] += 1
    if _client() is not None:
        _client().wait_at_barrier(f"unime_jax/{name}/{_calls[name]}", _DAYS)


def leave() -> None:
    """Waits for the others to be done, too, and parts; nothing where there are none."""
    global _watcher
    if _watcher is None:
        return
    barrier("done")  # process 0 may check its export for hours: JAX's own would not wait so long
    _leaving.set()
    _watcher.join()
    _watcher = None
    jax.distributed.shutdown()
    _dismiss_witness()


def fail(report: str, *, expected: bool, status: int = 1) -> None:
    """Prints what went wrong, tells the others, and exits; nothing where there are none.

    It does not wait for the others, who may be waiting for this process. What is not `expected`,
    that is, worded for a user, may be what another process's end looks like.
    """
    if _watcher is None:
        return
    state = distributed.global_state
    _ending.acquire()
    hint = (
        "If this is about a lost connection, another process failed first: see what it says; one "
        "that says nothing was killed, or its host is gone. "
    )
    _say(
        f"{report.rstrip()}\nprocess {state.process_id} of {state.num_processes} ends, and the "
        f"others with it. {'' if expected else hint}{RESUMES}"
    )
    try:
        _client().key_value_set(f"{_FAILED}/{state.process_id}", report.strip()[-2000:])
        _linger()
    except Exception as error:  # the service may be what is gone
        logging.warning("the other processes could not be told: %s", error)
    exits.exit_now(status)


def _watch() -> None:
    """Ends this process, whatever it waits for, when another one has said that it failed."""
    client, me = _client(), distributed.global_state.process_id
    while not _leaving.wait(_POLL_SECONDS):
        try:
            failed = client.key_value_dir_get(_FAILED)
        except Exception:  # JAX says and does what is to be done when the service is gone
            continue
        if failed:
            _ending.acquire()
            key, report = min(failed, key=lambda item: int(item[0].rpartition("/")[2]))
            _say(
                f"error: process {key.rpartition('/')[2]} failed, so process {me} ends. It said:\n"
                f"{report}\n{RESUMES}"
            )
            _linger()
            exits.exit_now(1)


def _call_a_witness(process: int, count: int) -> None:
    """Starts the witness of this process, which says so if the process is ended from outside."""
    global _witness
    said = (
        f"error: process {process} of {count} was ended from outside: killed (by hand, by the "
        "scheduler, or for want of memory), or aborted by JAX, because another process died or "
        f"its host is gone; lines above may say which. {RESUMES}"
    )
    command = ["/bin/sh", "-c", _WITNESS, "witness", said]
    try:
        _witness = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
    except OSError as error:
        logging.warning("no witness of this process's end: %s", error)
        return
    atexit.register(_dismiss_witness)
    exits.before_exit(_dismiss_witness)


def _dismiss_witness() -> None:
    """Ends the witness: this process ends by itself, and has said why."""
    global _witness
    witness, _witness = _witness, None
    if witness is None or witness.stdin is None:
        return
    try:
        witness.stdin.write(b"said\n")
        witness.stdin.close()
        witness.wait(exits.SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # it was ended before
        return


def _give_up(seconds: int) -> None:
    state = distributed.global_state
    where = state.coordinator_address or "the coordinator"
    who = f"process {state.process_id} of {state.num_processes}"
    if state.process_id == 0:
        missing = f"waited for the others at {where}, but not all came within {seconds} s"
    else:
        missing = f"was not joined with the others through process 0 at {where} within {seconds} s"
    _say(
        f"error: {who} {missing}. Check that the same command runs on all hosts at the same time, "
        "with the same coordinator and number of processes, each with a process id of its own; "
        "that the coordinator is a host name that all of them can reach, with the port open; and "
        "that no process of an earlier run is left."
    )
    exits.exit_now(1)


def _check(coordinator: str | None, process_id: int | None, num_processes: int | None) -> None:
    given = {
        "--coordinator": coordinator,
        "--process_id": process_id,
        "--num_processes": num_processes,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} must be given as well: all of {', '.join(given)}, or none "
            "where JAX finds the processes by itself."
        )
    host, _, port = (coordinator or "").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator={coordinator} must be host:port, of process 0.")
    if process_id not in range(num_processes or 0):
        raise ValueError(
            f"--process_id={process_id} must be from 0 to below --num_processes={num_processes}."
        )


def _client() -> Any:
    return distributed.global_state.client


def _linger() -> None:
    """Process 0 goes last: the service is in it."""
    time.sleep(_LINGER_SECONDS + (distributed.global_state.process_id == 0))


def _say(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
