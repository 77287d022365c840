"""Parameters by NumPy: programs that draw them take longer to compile than what is tested."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


def drawn(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Noise for shapes by path, the same on any mesh; weights of norms are about 1."""
    rng, parameters = np.random.default_rng(0), {}
    for path, x in shapes.items():
        if x.dtype == jnp.int8:
            value = rng.integers(-127, 128, x.shape, np.int8)
        elif path.endswith("kernel_scale"):
            value = np.full(x.shape, 1e-3, np.float32)
        else:
            value = 0.2 * rng.standard_normal(x.shape)
            value += path.endswith((".weight", ".lora_magnitude"))
        parameters[path] = jax.device_put(value.astype(x.dtype), x.sharding)
    return parameters
