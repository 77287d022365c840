"""Room that a training run needs: on disk, in the host's memory, in shared memory, in folders."""

import math
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

from unime_jax import config, files
from unime_jax.backbones.io.weights import SHARD_BYTES
from unime_jax.data import loader
from unime_jax.jobs.doctor_model import Model
from unime_jax.jobs.doctor_report import Report
from unime_jax.planning import program

MEMINFO = pathlib.Path("/proc/meminfo")
CGROUP = pathlib.Path("/sys/fs/cgroup")
# A process that has imported what a reader of rows needs is 0.27 GB (Python 3.11 on Linux, 28
# November 2026); the rest is for rows in the making.
WORKER_BYTES = 0.4e9
VERIFIED_BYTES = 4  # of a parameter, in the process that repeats the self-check, in float32


def checkpoint_bytes(model: Model) -> int:
    """Bytes of a checkpoint: what is trained, and Adam's two moments of it."""
    weights = model.run.abstract_model
    trained = weights.part(weights.parameters, trainable=True)
    return 3 * sum(leaf.size * leaf.dtype.itemsize for leaf in trained.values())


def check_disk(
    report: Report, facts: dict[str, Any], model: Model, workdir: files.Path, *, here: bool
) -> None:
    """Room in the work directory for checkpoints that are kept, the one being written, exports.

    `here`: whether it is this machine that the run is for.
    """
    settings = model.settings
    each = checkpoint_bytes(model)
    kept = settings.checkpoint.keep + settings.checkpoint.keep_best
    dtype = settings.export.dtype or settings.execution.dtype or "float32"
    export = model.parameters * jnp.dtype(dtype).itemsize
    needed = (kept + 1) * each + export
    facts["checkpoint"] = f"{each / 1e9:.2f} GB, of which {kept} are kept and one is written"
    facts["export"] = f"{export / 1e9:.2f} GB"
    if files.is_remote(workdir):
        report.skip("room.disk", f"{workdir} is in a bucket, which has no end that could be asked")
        return
    if not here:
        report.skip("room.disk", "the run is for another machine than this one")
        return
    free = shutil.disk_usage(_existing(pathlib.Path(workdir))).free
    facts["disk"] = f"{free / 1e9:.1f} GB free"
    if free < needed:
        report.add(
            "error",
            "room.disk",
            f"{workdir} has {free / 1e9:.1f} GB left, and {kept} checkpoints that are kept, the "
            f"one that is written and the export take {needed / 1e9:.1f} GB",
            where="--workdir",
            do="Give a work directory with more room (or gs://...), or keep fewer checkpoints "
            "(config.checkpoint.keep).",
        )


def check_memory(
    report: Report, facts: dict[str, Any], model: Model, free: int | None, *, cpus: bool
) -> None:
    """The host's memory, as an estimate, against readers, exports, and devices that are CPUs.

    Args:
      free: bytes; None: it is not known.
      cpus: whether the run's devices are, so that weights lie in the same memory.
    """
    settings = model.settings
    groups = program.abstract_rows(model.run.shapes, model.run.mesh)
    batch = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(groups))
    readers = settings.data.workers * WORKER_BYTES + (loader.BATCHES_AHEAD + 1) * batch
    on_host = 0
    if cpus:
        weights = model.run.abstract_model.parameters
        on_host = sum(leaf.size * leaf.dtype.itemsize for leaf in weights.values())
        on_host += checkpoint_bytes(model)
    dtype = settings.export.dtype or settings.execution.dtype or "float32"
    written = min(SHARD_BYTES, model.parameters * jnp.dtype(dtype).itemsize)
    verified = VERIFIED_BYTES * model.parameters if settings.export.verify else 0
    needed = WORKER_BYTES + on_host + max(readers, written + verified)
    facts["host memory"] = f"about {needed / 1e9:.1f} GB"
    if free is None:
        report.skip("room.memory", "this system does not say how much memory is free")
        return
    facts["host memory"] += f" of {free / 1e9:.1f} GB free"
    if needed > free:
        parts = {
            f"{settings.data.workers} workers and batches ahead": readers,
            "weights and moments, as devices are CPUs": on_host,
            "a file of the export": written,
            "repeating the self-check": verified,
        }
        listed = ", ".join(f"{what} {size / 1e9:.1f} GB" for what, size in parts.items() if size)
        report.add(
            "warning",
            "room.memory",
            f"the run needs about {needed / 1e9:.1f} GB of the host's memory ({listed}), and "
            f"{free / 1e9:.1f} GB are free",
            where="config.export.verify" if verified > readers else "config.data.workers",
            do="Lower config.data.workers, set config.export.verify=False and repeat the check on "
            "a larger machine, or use a host with more memory.",
        )


def free_memory(meminfo: pathlib.Path = MEMINFO, cgroup: pathlib.Path = CGROUP) -> int | None:
    """Bytes of the host's memory that this process may have; None: not known."""
    amounts = []
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        amounts.append(1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            amounts.append(int(limit) - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(amounts) if amounts else None


def check_shared_memory(report: Report, workers: int, folder: str = loader.SHARED_MEMORY) -> None:
    """Shared memory that workers hand rows over in; too little, and they go by pipes."""
    if not workers:
        return
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        report.skip("room.shared_memory", f"there is no {folder} on this system")
        return
    if free < loader.MIN_SHARED_MEMORY:
        report.add(
            "warning",
            "room.shared_memory",
            f"{folder} has {free / 1e6:.0f} MB, so that {workers} workers hand rows over by pipes, "
            "which is slower",
            where=folder,
            do="Give the container more (docker run --shm-size=8g; an emptyDir of medium Memory in "
            "Kubernetes).",
        )


def check_folders(report: Report, settings: config.TrainConfig, workdir: files.Path) -> None:
    """Folders that are read and written: data, cache of programs, temporary files."""
    data = files.as_path(settings.data.folder)
    if isinstance(data, pathlib.Path):
        if data.exists() and not os.access(data, os.R_OK | os.X_OK):
            report.add(
                "error",
                "room.data_folder",
                f"{data} cannot be read by this user",
                where="config.data.folder",
                do="Give this user the right to read it.",
            )
        if settings.data.prepare.module and not os.access(_existing(data), os.W_OK):
            report.add(
                "warning",
                "room.data_folder",
                f"config.data.prepare.module={settings.data.prepare.module!r} makes data that is "
                f"missing, and {_existing(data)} cannot be written",
                where="config.data.folder",
                do="Give a folder that can be, or set config.data.prepare.module to '' if all is "
                "there.",
            )
    caches = {"config.compilation_cache": settings.compilation_cache}
    for key, name in (*caches.items(), ("TMPDIR", tempfile.gettempdir())):
        if name in ("", "auto") or files.is_remote(name):
            continue
        if not os.access(_existing(pathlib.Path(name)), os.W_OK):
            report.add(
                "warning",
                "room.cache",
                f"{name} cannot be written"
                + (": every start compiles anew" if key.startswith("config") else ""),
                where=key,
                do="Give a folder that can be.",
            )


def _existing(path: pathlib.Path) -> pathlib.Path:
    """The path, or the nearest folder above it that there is."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())
