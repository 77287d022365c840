"""Whether this machine's cuDNN computes attention: versions of it have ignored rows' lengths."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

TOLERANCE = 0.05  # of bfloat16 outputs and gradients that are about 1


@functools.cache
def passes() -> bool:
    """Whether cuDNN agrees with XLA on this process's first device; if not, the log says why.

    Two rows are attended by both, as a causal model does and by lengths, and gradients compared.
    """
    try:
        for causal in (True, False):
            ours, theirs = _outputs("cudnn", causal), _outputs("xla", causal)
            apart = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
            if not apart < TOLERANCE:
                how = "a causal model" if causal else "lengths of rows"
                logging.warning(
                    "attention by XLA and not cuDNN, which is off by %.3g with %s", apart, how
                )
                return False
    except Exception as error:  # of any kind: cuDNN's own have no class in common
        logging.warning("attention by XLA and not cuDNN, which fails: %s", error)
        return False
    return True


def _outputs(implementation: Literal["xla", "cudnn"], causal: bool) -> list[np.ndarray]:
    """Outputs of real tokens, and gradients, of two rows of which one is a quarter full."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (2, 128, 4, 64), (2, 128, 2, 64), (2, 128, 2, 64)
    inputs = [jax.random.normal(*pair, jnp.bfloat16) for pair in zip(keys, shapes)]
    length = None if causal else jnp.asarray([128, 32])
    real = jnp.arange(128) < (128 if length is None else length[:, None, None, None])
    real = jnp.broadcast_to(real, (2, 1, 1, 128)).reshape(2, 128, 1, 1)

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jax.nn.dot_product_attention(
            q,
            k,
            v,
            is_causal=causal,
            key_value_seq_lengths=length,
            implementation=implementation,
        )
        y = jnp.where(real, y, 0).astype(jnp.float32)
        return jnp.square(y).sum(), y

    with jax.default_device(jax.local_devices()[0]):
        (_, y), gradients = jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))(*inputs)
    return [np.asarray(x, np.float32) for x in (y, *gradients)]
