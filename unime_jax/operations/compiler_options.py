"""Compiler options of programs by platform.

CPUs: at optimisation level 1 LLVM compiles in a tenth less time, and the programs are as fast
(docs/performance.md). XLA_FLAGS with a level of its own overrules it.
"""

import os

from jax.sharding import AbstractMesh, Mesh

LEVEL = "xla_backend_optimization_level"


def of(mesh: Mesh | AbstractMesh) -> dict[str, int] | None:
    """Options of a program for the devices of a mesh; None: the defaults."""
    if not isinstance(mesh, Mesh) or mesh.devices.flat[0].platform != "cpu":
        return None
    return None if LEVEL in os.environ.get("XLA_FLAGS", "") else {LEVEL: 1}
