"""From hidden states to unit vectors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def last_token(hidden: Float[Array, "B T D"], length: Int[Array, " B"]) -> Float[Array, "B D"]:
    """The hidden state of each row's last real token; of token 0 where the row is padding."""
    index = jnp.maximum(length - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden, index, axis=1)[:, 0]


def unit_norm(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Rows scaled to length one, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
