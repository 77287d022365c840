"""Ahead-of-time compilation for TPU slices without hardware, cached on disk."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import math
import os
import re
import zlib
from typing import Any

import jax
from absl import logging
from jax.experimental import topologies

from unime_jax import files
from unime_jax.operations import quiet
from unime_jax.planning.chips import Slice
from unime_jax.planning.program import Program

PACKAGES = ("jax", "jaxlib", "libtpu")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Bytes that a refused program asks for, arguments and results included, in the words of libtpu
# 0.0.42, and of XLA where it counts buffers itself.
REFUSALS = (
    r"total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds",
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
)


class NoCompilerError(Exception):
    """libtpu is not installed."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Compiler's memory analysis of one chip, in bytes.

    Attributes:
      temporaries: largest size at any moment, without arguments and results.
      peak: arguments, results and temporaries together.
      too_large: the compiler gave up, as it does when `peak` is more than the chip has; there is
        no `text` then, and `temporaries` is what is left of `peak`.
      text: optimised HLO.
    """

    temporaries: int
    peak: int
    too_large: bool
    text: str


def devices(where: Slice) -> list[jax.Device]:
    """Devices of a slice without hardware, for programs that are compiled and never run.

    Raises:
      NoCompilerError: libtpu is missing.
      ValueError: it does not know this slice, or is in use by another process.
    """
    if not _version("libtpu"):
        raise NoCompilerError(
            'libtpu is not installed. It compiles for TPUs on any machine: pip install "jax[tpu]"'
        )
    quiet.tell_libtpu_of_no_tpu()
    options: dict[str, Any] = {}
    if set(where.sides) == {1}:  # else hosts are taken to have four chips
        options["chips_per_host_bounds"] = (1, 1, 1)
    if where.count > 1:
        options["num_slices"] = where.count
    name = where.name.rpartition("*")[2]
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        raise ValueError(f"libtpu gives no slice {where.name}: {error}") from error
    return list(topology.devices)


def compile_program(program: Program, where: Slice, cache: files.Path) -> Compiled:
    """Memory and HLO of a program on its own mesh, compiled or read from `cache`.

    The cache key is the lowered text, the slice, the versions and flags.
    """
    with jax.set_mesh(program.mesh):
        lowered = program.run.lower(*program.arguments)
    text = "\n".join([versions(), where.name, lowered.as_text()])
    key = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    sizes, hlo = cache / f"{key}.json", cache / f"{key}.hlo.gz"
    if sizes.exists():
        try:
            values = files.read_object(sizes)
            optimised = "" if values["too_large"] else gzip.decompress(hlo.read_bytes()).decode()
            return Compiled(values["temporaries"], values["peak"], values["too_large"], optimised)
        except (ValueError, TypeError, KeyError, OSError, EOFError, zlib.error) as error:
            files.set_aside(sizes, error)
    logging.info("compiling for %s; a 7B step takes minutes", where.name)
    compiled = _compile(lowered, program, cache / f"{key}.error.txt")
    cache.mkdir(parents=True, exist_ok=True)
    files.write_whole(hlo, gzip.compress(compiled.text.encode(), 6))
    values = dataclasses.asdict(compiled)
    del values["text"]
    files.write_whole(sizes, json.dumps(values) + "\n")  # last: it says that the other is whole
    return compiled


def _compile(lowered: jax.stages.Lowered, program: Program, log: files.Path) -> Compiled:
    """Compiles; a refusal for want of memory, which names the largest buffers, is left in `log`."""
    try:
        with jax.set_mesh(program.mesh):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        peak = _refused_bytes(str(error))
        if peak is None:
            raise
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(str(error))
        temporaries = max(peak - argument_bytes(program), 0)
        return Compiled(temporaries, peak, too_large=True, text="")
    memory: Any = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes
    peak = memory.argument_size_in_bytes + results + temporaries
    return Compiled(temporaries, peak, too_large=False, text=compiled.as_text() or "")


def argument_bytes(program: Program) -> int:
    """Bytes of all arguments on one chip."""
    return chip_bytes(program.arguments)


def chip_bytes(tree: object) -> int:
    """Exact bytes of a tree of abstract arrays on one chip, by their shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        share = leaf.sharding.shard_shape(leaf.shape)
        total += math.prod(share) * leaf.dtype.itemsize
    return total


def versions() -> str:
    """Versions of the packages, and flags of libtpu, that decide the compiled program."""
    packages = [f"{name} {_version(name) or 'none'}" for name in PACKAGES]
    return " ".join([*packages, *os.environ.get("LIBTPU_INIT_ARGS", "").split()])


def _refused_bytes(message: str) -> int | None:
    """HBM bytes that a refused program needs, from the compiler's message."""
    for refusal in REFUSALS:
        if match := re.search(refusal, message):
            return round(float(match[1]) * UNITS[match[2]])
    return None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
