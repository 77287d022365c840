"""Cosines of unit vectors, on any mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Float32

from unime_jax.sharding import shard_rows


def cosines(
    rows: Float32[jax.Array, "B D"], columns: Float32[jax.Array, "M D"]
) -> Float32[jax.Array, "B M"]:
    """On a mesh every device holds all columns: scores stay split by rows, and top_k is local.

    Rows are constrained as well: the compiler, left to choose, splits the scores of a symmetric
    loss by columns, and then gathers all of them for a gradient.
    """
    if not jax.sharding.get_abstract_mesh().empty:
        columns = jax.lax.with_sharding_constraint(columns, PartitionSpec())
    return jnp.einsum("bd,md->bm", shard_rows(rows), columns, precision=jax.lax.Precision.HIGHEST)
