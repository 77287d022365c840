"""Numbers of single processes, summed over all of them without anybody waiting for the device."""

import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unime_jax import sharding

Sums = Callable[[], dict[str, float]]  # waits until they are there


def sum_over_processes(mesh: Mesh) -> Callable[[Mapping[str, float]], Sums]:
    """A function that all processes call with values of the same names, and equally often.

    With several processes the sum is one more computation in the devices' queue. Whoever asks for
    its result right away waits for everything before it, a training step for example; whoever asks
    a step later does not. Values are summed in float32.
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
        return lambda: dict(zip(values, map(float, np.asarray(total)), strict=True))

    return start
