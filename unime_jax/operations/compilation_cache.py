"""Persistent compilation cache: its folder, and log lines while something compiles.

A program for a TPU or GPU runs on every device of its kind, so that a run keeps its programs in its
own work directory, for all hosts. A program for a CPU has the instructions of the CPU that it was
compiled on, and may kill a process on another one: those are kept in the user's own cache, in a
folder named after what the CPU can do, which a shared home directory does not mix up either.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.monitoring
from absl import logging

from unime_jax import files

MOST_BYTES = 4 << 30  # of the user's own cache; the oldest programs go first
LEAST_SECONDS = 0.2  # of compiling, for a program on a CPU to be kept
SECONDS_BETWEEN_LINES = 60.0  # while something compiles

_HIT = "/jax/compilation_cache/cache_hits"
_hits = threading.local()  # of a thread, which compiles one program at a time
_chosen = False  # by a job; what a library call then would choose does not matter


def use_for_job(setting: str, workdir: files.Path) -> None:
    """Uses the cache that a config asks for, before anything is compiled.

    Args:
      setting: a folder; "auto": what JAX's environment names, else `folder_for`; "": what JAX's
        environment names, or none.
    """
    global _chosen
    _chosen = True
    if setting == "auto":
        _use_default(workdir)
    elif setting:
        _use(files.as_path(setting))


def use_for_library() -> None:
    """Uses the user's own cache, unless a job, the caller or JAX's environment chose one."""
    if not _chosen:
        _use_default(None)


def folder_for(workdir: files.Path | None) -> files.Path:
    """The folder of this process's programs; `workdir`: of the run, if there is one.

    On CPUs and without a run it is below $XDG_CACHE_HOME (~/.cache)/unime_jax/compiled.
    """
    backend = jax.default_backend()
    if workdir is not None and backend != "cpu":
        return workdir / "compilation_cache"
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    name = f"cpu-{_cpu()}" if backend == "cpu" else backend
    return pathlib.Path(home, "unime_jax", "compiled", name)


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """Logs that `what` is compiled in it, how long it takes, and whether it came from the cache."""
    logging.info("compiling %s", what)
    started, hits = time.perf_counter(), _count()
    done = threading.Event()

    def remind() -> None:
        while not done.wait(SECONDS_BETWEEN_LINES):
            seconds = time.perf_counter() - started
            logging.info("still compiling %s, for %.0f s now", what, seconds)

    threading.Thread(target=remind, name="compiling", daemon=True).start()
    try:
        yield
    finally:
        done.set()
    kept = ", kept from an earlier start" if _count() > hits else ""
    logging.info("compiled %s in %.1f s%s", what, time.perf_counter() - started, kept)


def _use_default(workdir: files.Path | None) -> None:
    if _told("jax_compilation_cache_dir") or not _told("jax_enable_compilation_cache"):
        return
    try:
        folder = folder_for(workdir)
        if isinstance(folder, pathlib.Path):
            # Who writes there runs code here.
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if workdir is None or jax.default_backend() == "cpu":
                _trim(folder)
    except (OSError, RuntimeError) as error:  # without a home directory, too
        logging.info("compiled programs are not kept: %s", error)
        return
    if jax.default_backend() == "cpu" and not os.environ.get(
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    ):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    _use(folder)


def _use(folder: files.Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(folder))
    logging.info("compiled programs are kept in %s", folder)


def _told(name: str) -> Any:
    """A value of JAX's configuration, set by its environment or a caller."""
    return jax.config.values[name]


def _trim(folder: pathlib.Path) -> None:
    """Removes the oldest programs beyond `MOST_BYTES`; who reads one then compiles it anew."""
    kept = [(file.stat(), file) for file in folder.iterdir() if file.is_file()]
    total = sum(stat.st_size for stat, _ in kept)
    for stat, file in sorted(kept, key=lambda pair: pair[0].st_mtime):
        if total <= MOST_BYTES:
            return
        file.unlink(missing_ok=True)
        total -= stat.st_size


def _cpu() -> str:
    """A hash of the CPU's model and instruction sets; without /proc, of the machine's name."""
    said = [platform.machine(), platform.system()]
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU")
        said += [line for line in lines if line.startswith(wanted)]
    except OSError:
        said += [platform.processor(), platform.node()]
    return hashlib.blake2b("\n".join(said).encode(), digest_size=8).hexdigest()


def _count_hits(event: str, **_: str | int) -> None:
    _hits.count = _count() + (event == _HIT)


def _count() -> int:
    return getattr(_hits, "count", 0)


jax.monitoring.register_event_listener(_count_hits)
