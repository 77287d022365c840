"""Asynchronous cross-process sums of host scalars."""

import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unime_jax import sharding

Sums = Callable[[], dict[str, float]]  # waits for the result


def sum_over_processes(mesh: Mesh) -> Callable[[Mapping[str, float]], Sums]:
    """A function that starts a sum of float32 values by name, and returns one that waits for it.

    All processes call it with the same names, and equally often. With several processes the sum is
    one more computation in the devices' queue: its result comes after everything before it there,
    a training step for example, and is there a step later.
    """
    if jax.process_count() == 1:
        return lambda values: lambda: {name: float(value) for name, value in values.items()}
    along_all = NamedSharding(mesh, P(mesh.axis_names))
    add = jax.jit(lambda x: x.sum(axis=0), out_shardings=sharding.replicated(mesh))
    own = math.prod(mesh.local_mesh.shape.values())

    def start(values: Mapping[str, float]) -> Sums:
        mine = np.zeros((own, len(values)), np.float32)
        mine[0] = list(values.values())
        total = add(sharding.to_global(mine, along_all))
        return lambda: dict(zip(values, map(float, jax.device_get(total)), strict=True))

    return start
