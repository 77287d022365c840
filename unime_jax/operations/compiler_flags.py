"""Flags of XLA for GPUs, set before a backend starts: transfers hide behind computation.

The TPU's compiler does so by itself. XLA's flags are read from the environment, and one that a
library does not know ends the process, so only what is written in all libraries that read them is
set.
"""

import importlib.util
import mmap
import os
import pathlib
import pkgutil
from collections.abc import Sequence

import jax
from absl import logging

VARIABLE = "XLA_FLAGS"
# Off by default in jaxlib 0.10. JAX's and NVIDIA's pages on GPU performance both advise it.
FLAGS = {"xla_gpu_enable_latency_hiding_scheduler": "true"}


def set_for_gpus() -> None:
    """Sets `FLAGS` where GPUs may be used, unless the user set them; all are logged."""
    if jax.config.values["jax_platforms"] in (None, "", "cuda", "gpu"):
        plugins = gpu_plugins()
        if plugins:
            add([*_libraries("jaxlib", "libjax_common*"), *plugins])


def add(libraries: Sequence[pathlib.Path]) -> None:
    """Adds the flags that all of these libraries know, and that the environment does not name."""
    before = os.environ.get(VARIABLE, "")
    for name, value in FLAGS.items():
        if name in before:
            logging.info("%s names %s, which stays so", VARIABLE, name)
        elif libraries and all(_knows(library, name) for library in libraries):
            os.environ[VARIABLE] = f"{os.environ.get(VARIABLE, '')} --{name}={value}".strip()
            logging.info("%s: --%s=%s (--nooverlap leaves it out)", VARIABLE, name, value)
        else:
            logging.warning("XLA of this jaxlib or plugin has no %s, which is left out", name)


def gpu_plugins() -> list[pathlib.Path]:
    """The libraries of JAX's installed plugins for NVIDIA GPUs."""
    spec = importlib.util.find_spec("jax_plugins")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    names = [module.name for module in pkgutil.iter_modules(folders)]
    return [
        library
        for name in names
        if name.startswith("xla_cuda")
        for library in _libraries(f"jax_plugins.{name}", "xla_cuda_plugin*")
    ]


def _libraries(package: str, pattern: str) -> list[pathlib.Path]:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return [file for folder in folders for file in sorted(pathlib.Path(folder).glob(pattern))]


def _knows(library: pathlib.Path, flag: str) -> bool:
    """Whether a library holds a flag's name, as that of a flag which its parser knows."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(flag.encode() + b"\0") >= 0
