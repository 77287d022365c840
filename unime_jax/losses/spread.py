"""Spread-out regulariser: embeddings of different items kept apart (Zhang et al. 2017)."""

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, Float32


def spread_out(embeddings: Float[Array, "B D"]) -> Float32[Array, ""]:
    """Mean squared cosine of two different rows: 1 / D of evenly spread ones, 1 if all are equal.

    As EmbeddingGemma has it (arXiv 2509.20354), without the original's term of the mean cosine. It
    follows from the [D, D] matrix of second moments, so that no two rows meet on a device. 0 of a
    single row.

    Args:
      embeddings: unit vectors; computed in float32 whatever their dtype.
    """
    rows = embeddings.astype(jnp.float32)
    count = rows.shape[0]
    moments = jnp.einsum("bd,be->de", rows, rows, precision=Precision.HIGHEST)
    own = jnp.square(jnp.square(rows).sum(axis=1)).sum()
    return (jnp.square(moments).sum() - own) / max(count * (count - 1), 1)
