"""From hidden states to unit vectors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def last_token(hidden: Float[Array, "R T D"], length: Int[Array, " R"]) -> Float[Array, "R D"]:
    """The hidden state of each row's last real token; of token 0 where the row is padding."""
    index = jnp.maximum(length - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden, index, axis=1)[:, 0]


def last_states(
    hidden: Float[Array, "R T D"],
    length: Int[Array, " R"],
    segment_end: Int[Array, "R segments"] | None,
) -> Float[Array, "R segments D"]:
    """States of the last token of each segment; of a row without segments, of its own."""
    if segment_end is None:
        return last_token(hidden, length)[:, None]
    return jnp.take_along_axis(hidden, segment_end[:, :, None], axis=1)


def token_mean(
    hidden: Float[Array, "R T D"], start: Int[Array, " R"] | None, length: Int[Array, " R"]
) -> Float[Array, "R D"]:
    """The mean of each row's hidden states from `start` (None: 0) on, float32; of none it is 0."""
    index = jnp.arange(hidden.shape[1])
    pooled = index < length[:, None]
    if start is not None:
        pooled &= index >= start[:, None]
    # No matmul: on TPU that would round to bfloat16 first.
    total = jnp.sum(jnp.where(pooled[..., None], hidden.astype(jnp.float32), 0), axis=1)
    return total / jnp.maximum(jnp.sum(pooled, axis=1, keepdims=True), 1)


def unit_norm(x: Float[Array, "R D"]) -> Float[Array, "R D"]:
    """Rows scaled to length one, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
