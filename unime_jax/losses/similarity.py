"""Cosines of unit vectors, on any mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Float32


def cosines(
    rows: Float32[jax.Array, "R D"], columns: Float32[jax.Array, "K D"]
) -> Float32[jax.Array, "R K"]:
    """On a mesh every device holds all columns: scores stay split by rows, and top_k is local."""
    if not jax.sharding.get_abstract_mesh().empty:
        columns = jax.lax.with_sharding_constraint(columns, PartitionSpec())
    return jnp.einsum("rd,kd->rk", rows, columns, precision=jax.lax.Precision.HIGHEST)
