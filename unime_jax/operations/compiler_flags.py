"""Flags of XLA's compilers, set before a backend starts: transfers hide behind computation.

They are read from the environment, and one that a library does not know ends the process, so only
what is written in all libraries that read them is set, and nothing that the user named.
"""

import importlib.util
import mmap
import os
import pathlib
import pkgutil
from collections.abc import Mapping, Sequence

from absl import logging

# Off by default in jaxlib 0.10. JAX's and NVIDIA's pages on GPU performance both advise it.
GPU = {"xla_gpu_enable_latency_hiding_scheduler": "true"}
# Gathers in pieces beside the products of a layer, as MaxText has them.
TPU = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}


def overlap_transfers(platforms: str, *, planned: bool) -> None:
    """Sets `GPU` and `TPU` where such devices may be used.

    Args:
      platforms: that JAX is told to use; "": what there is.
      planned: programs are compiled for TPUs that are not here.
    """
    tpus = libraries("libtpu", "libtpu.so") if planned or platforms in ("", "tpu") else []
    gpus = _gpu_plugins() if platforms in ("", "cuda", "gpu") else []
    if tpus:
        add("LIBTPU_INIT_ARGS", TPU, tpus)
    if gpus:
        add("XLA_FLAGS", GPU, [*libraries("jaxlib", "libjax_common*"), *gpus])


def add(variable: str, wanted: Mapping[str, str], readers: Sequence[pathlib.Path]) -> None:
    """Adds flags to a variable of the environment, and logs them.

    Those that it names stay as they are, and those that not all `readers` know are left out.
    """
    before = os.environ.get(variable, "")
    mine = {name: value for name, value in wanted.items() if name not in _names(before)}
    known = {name for name in mine if readers and all(_knows(file, name) for file in readers)}
    added = [f"--{name}={value}" for name, value in mine.items() if name in known]
    if added:
        os.environ[variable] = " ".join([before, *added]).strip()
        logging.info("%s (--nooverlap leaves it so): %s", variable, " ".join(added))
    if unknown := sorted(mine.keys() - known):
        logging.warning(
            "%s: this version's compiler does not know %s, so transfers may not overlap with"
            " computation",
            variable,
            ", ".join(unknown),
        )


def libraries(package: str, pattern: str) -> list[pathlib.Path]:
    """Files of an installed package's own folder; none if it is not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # of the package it is in
        return []
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return [file for folder in folders for file in sorted(pathlib.Path(folder).glob(pattern))]


def _gpu_plugins() -> list[pathlib.Path]:
    """The libraries of JAX's installed plugins for NVIDIA GPUs."""
    spec = importlib.util.find_spec("jax_plugins")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    names = [module.name for module in pkgutil.iter_modules(folders)]
    return [
        file
        for name in names
        if name.startswith("xla_cuda")
        for file in libraries(f"jax_plugins.{name}", "xla_cuda_plugin*")
    ]


def _names(flags: str) -> set[str]:
    """Names of the flags in a variable of the environment."""
    return {flag.lstrip("-").partition("=")[0] for flag in flags.split()}


def _knows(library: pathlib.Path, flag: str) -> bool:
    """Whether a library holds a flag's name as a string of its own, as its parser does."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(b"\0" + flag.encode() + b"\0") >= 0
