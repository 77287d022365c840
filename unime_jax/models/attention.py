"""Scaled dot-product attention: one function in front of the implementations that jax ships."""

from typing import Literal

import jax
from jaxtyping import Array, Float, Int

Implementation = Literal["xla", "cudnn"]


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool,
    implementation: Implementation,
    segment: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v with grouped queries (N a multiple of K), softmax in float32.

    Rows are right-padded: with `causal` no real token sees padding, so no length mask is needed.
    Without `causal` every key is attended: callers pass unpadded keys (tiles of a vision tower).
    With `segment`, S = T, tokens attend to those of their own segment only.
    """
    mask = None if segment is None else segment[:, None, :, None] == segment[:, None, None, :]
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, implementation=implementation
    )
