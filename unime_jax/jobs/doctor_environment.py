"""Environment of a run: versions that belong together, devices, limits, clock."""

import importlib.metadata
import os
import pathlib
import platform
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from unime_jax.jobs.doctor_report import Report

# Distributions whose requirements of each other are looked at, and the extras of JAX that each
# plugin belongs to.
OURS = ("unime_jax", "jax", "flax", "orbax-checkpoint", "optax", "grain", "transformers")
PLUGINS = {
    "libtpu": "tpu",
    "jax-cuda12-plugin": "cuda12-local",
    "jax-cuda13-plugin": "cuda13-local",
}
SHOWN = ("unime_jax", "jax", "jaxlib", "flax", *PLUGINS)
# What tells a process its place in a slice of several hosts.
POD = ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "TPU_TOPOLOGY")
OLDEST_PYTHON = (3, 11)
PROC, DEV = pathlib.Path("/proc"), pathlib.Path("/dev")
# What a process of the run has open besides: files of a data set, sockets, pipes of a worker.
FILES, FILES_OF_WORKER, FILES_OF_SOURCE = 256, 16, 4
PACKAGE = pathlib.Path(__file__).parents[1]


def check_versions(report: Report, facts: dict[str, Any]) -> None:
    """Python, and packages that ask for other versions of each other than are installed."""
    facts["python"] = platform.python_version()
    facts |= {name: _version(name) for name in SHOWN if _version(name)}
    python = tuple(map(int, platform.python_version_tuple()[:2]))
    if python < OLDEST_PYTHON:
        report.add(
            "error",
            "environment.python",
            f"Python is {facts['python']}, and this package is for 3.11 and later",
            do="Make a virtual environment with a later Python.",
        )
    try:
        for name, wanted, version in misfits():
            report.add(
                "error",
                "environment.versions",
                f"{name} {_version(name)} wants {wanted}, and "
                + (f"{version} is installed" if version else "it is not installed"),
                where=name,
                do=f"pip install '{wanted}', or install {name} anew with what belongs to it: "
                "pip install -U 'unime_jax[tpu]', or [cuda12], or neither on CPUs.",
            )
    except ImportError as error:
        report.skip("environment.versions", f"{error}: requirements cannot be compared without")
    if not _version("unime_jax"):
        report.skip(
            "environment.versions.unime_jax",
            "this package is not installed but imported from a folder, so that versions it "
            "requires are not known; pip install -e . in the clone tells pip",
        )


def misfits() -> Iterator[tuple[str, str, str]]:
    """Distribution, what it requires, and the version that there is instead; "": none."""
    from packaging.requirements import Requirement

    extras = {extra for name, extra in PLUGINS.items() if _version(name)}
    seen = {*OURS, "jaxlib", *PLUGINS}
    for name in OURS:
        for text in _requires(name):
            requirement = Requirement(text)
            if requirement.name.lower().replace("_", "-") not in {n.lower() for n in seen}:
                continue
            of_extras = [{"extra": extra} for extra in ("", *(extras if name == "jax" else ()))]
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate(each) for each in of_extras):
                continue
            version = _version(requirement.name)
            if not requirement.specifier.contains(version or "0", prereleases=True):
                yield name, f"{requirement.name}{requirement.specifier}", version


def _requires(name: str) -> Sequence[str]:
    try:
        return importlib.metadata.requires(name) or ()
    except importlib.metadata.PackageNotFoundError:
        return ()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def check_devices(
    report: Report,
    facts: dict[str, Any],
    *,
    joins: bool,
    environment: Mapping[str, str] = os.environ,
    proc: pathlib.Path = PROC,
    dev: pathlib.Path = DEV,
) -> bool:
    """Devices that JAX sees, and what keeps it from seeing them; whether they could be asked.

    Args:
      joins: whether the run is of several processes, which see their devices together.
    """
    hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if len(hosts) > 1:
        facts |= {name: value for name, value in environment.items() if name in POD}
    if len(hosts) > 1 and not joins:
        worker = environment.get("TPU_WORKER_ID", "?")
        report.add(
            "error",
            "environment.pod",
            f"this host is worker {worker} of the {len(hosts)} of a TPU slice "
            "(TPU_WORKER_HOSTNAMES), and the command is for one process: it would wait for the "
            "others without end",
            where="--distributed",
            do="Start the same command with --distributed on all hosts (experiments/launch/).",
        )
    if joins or len(hosts) > 1:
        report.skip(
            "environment.devices",
            "the processes of the run see devices only together; of a slice, "
            "--config.doctor.slice=v5e:4x4 says what it has",
        )
        return False
    accelerators = sorted([*dev.glob("accel[0-9]*"), *dev.glob("vfio/[0-9]*")])
    gpus = sorted(dev.glob("nvidia[0-9]*"))
    for pid, command in holders(accelerators, proc):
        report.add(
            "error",
            "environment.held",
            f"process {pid} ({command}) holds this machine's TPU, which one process can at a time",
            where=str(accelerators[0]),
            do=f"Wait for it, or end it if it is left over: kill {pid}.",
        )
        report.skip("environment.devices", "the TPU is another process's")
        return False
    try:
        devices = jax.devices()
    except RuntimeError as error:
        report.add(
            "error",
            "environment.devices",
            f"JAX finds no devices: {str(error).splitlines()[0]}",
            where="JAX_PLATFORMS" if environment.get("JAX_PLATFORMS") else "",
            do="See that the plugin of the platform is installed (versions above), that its "
            "devices are those of this machine, and that JAX_PLATFORMS names one that is there.",
        )
        jax.config.update("jax_platforms", "cpu")  # for what is only traced
        return False
    platform_name = devices[0].platform
    facts["devices"] = f"{len(devices)} x {devices[0].device_kind} ({platform_name})"
    memory = None
    if platform_name != "cpu":
        memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    if memory:
        facts["device memory"] = f"{memory / 1e9:.1f} GB each"
    asked = environment.get("JAX_PLATFORMS", "")
    if platform_name == "cpu" and (accelerators or gpus) and "cpu" not in asked:
        kind, extra = ("TPU", "tpu") if accelerators else ("NVIDIA GPU", "cuda12")
        report.add(
            "warning",
            "environment.unused",
            f"this machine has a {kind} ({(accelerators or gpus)[0]}), and JAX uses the CPU",
            do=f"pip install 'unime_jax[{extra}]'; the first line of JAX's log says why the "
            "plugin was not used.",
        )
    for pid, command in holders(gpus, proc) if platform_name == "gpu" else ():
        report.add(
            "warning",
            "environment.held",
            f"process {pid} ({command}) uses a GPU of this machine, too, so that its memory is "
            "less than said here",
            where=str(gpus[0]),
            do="Wait for it, or leave its GPU out by CUDA_VISIBLE_DEVICES.",
        )
    return True


def holders(devices: Sequence[pathlib.Path], proc: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Other processes that have one of these files open, with the names of their programs."""
    wanted = {str(device) for device in devices}
    if not wanted:
        return
    for folder in proc.glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        try:
            opened = {os.readlink(link) for link in (folder / "fd").iterdir()}
            command = (folder / "comm").read_text().strip()
        except OSError:  # another user's, or gone
            continue
        if opened & wanted:
            yield int(folder.name), command


def check_limits(report: Report, *, workers: int, sources: int, soft: int | None = None) -> None:
    """The limit of open files, against those of data and workers. `soft`: as `ulimit -n`."""
    if soft is None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = FILES + FILES_OF_WORKER * workers + FILES_OF_SOURCE * sources
    if soft != resource.RLIM_INFINITY and soft < needed:
        report.add(
            "warning",
            "environment.open_files",
            f"a process may have {soft} files open, and {workers} workers and {sources} sources "
            f"take about {needed}",
            where="ulimit -n",
            do=f"Raise the limit in the shell that starts the run: ulimit -n {max(4096, needed)}.",
        )


def check_clock(report: Report, now: float | None = None) -> None:
    """A clock that is behind this package's own files, as of a machine that has just booted."""
    now = time.time() if now is None else now
    written = max(file.stat().st_mtime for file in PACKAGE.glob("jobs/*.py"))
    if now < written - 24 * 3600:
        date = time.strftime("%Y-%m-%d %H:%M", time.gmtime(now))
        report.add(
            "warning",
            "environment.clock",
            f"the clock says {date} UTC, which is before this package was installed; hub and "
            "buckets refuse connections by a wrong clock",
            do="Set it (timedatectl set-ntp true).",
        )
