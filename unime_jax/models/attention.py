"""Scaled dot-product attention: one function in front of the implementations that jax ships."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unime_jax.models import precision
from unime_jax.models.settings import Implementation


def attend(
    q: Float[Array, "rows tokens heads head"],
    k: Float[Array, "rows keys kv_heads head"],
    v: Float[Array, "rows keys kv_heads head"],
    *,
    causal: bool,
    implementation: Implementation,
    segment: Int[Array, "rows tokens"] | None = None,
    shared: int | None = None,
    length: Int[Array, " rows"] | None = None,
) -> Float[Array, "rows tokens heads head"]:
    """softmax(q k^T / sqrt(head)) v with grouped queries, softmax in float32.

    `heads` is a multiple of `kv_heads`. Rows are right-padded: with `causal` no real token sees
    padding, so no length mask is needed. Without `causal` every key is attended (a vision tower's)
    or, with `length`, the first so many of a row, at least one. With `segment`, tokens attend to
    those of their own segment only and, with `shared`, to those of that segment.
    """
    mask = None
    if segment is not None:
        of_key = segment[:, None, None, :]
        mask = segment[:, None, :, None] == of_key
        if shared is not None:
            mask |= of_key == shared
    with precision.asked(q.dtype):
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            is_causal=causal,
            # No key at all would be a mean over nothing.
            key_value_seq_lengths=None if length is None else jnp.maximum(length, 1),
            implementation=implementation,
        )
