"""Checksums of arrays where they lie: the same on any mesh, another if any one value changes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def checksums(tree: Any) -> dict[str, int]:
    """32 bits of every array of a tree, by its path.

    The sum of an array's values, taken as unsigned integers, times odd numbers that depend on the
    place, modulo 2^32. It is computed on the devices, in one pass over the arrays.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # One program for all: of many small ones with a reduction each, CPUs may mix up the order.
    sums = jax.device_get(_replicated_sums(leaves[0][1].sharding.mesh)([x for _, x in leaves]))
    return {jax.tree_util.keystr(path): int(n) for (path, _), n in zip(leaves, sums, strict=True)}


@functools.cache
def _replicated_sums(mesh: Mesh) -> Callable[[list[jax.Array]], list[jax.Array]]:
    return jax.jit(
        lambda arrays: [_sum(array) for array in arrays], out_shardings=NamedSharding(mesh, P())
    )


@jax.jit  # traced and lowered once a shape: most arrays of a state are of few
def _sum(array: jax.Array) -> jax.Array:
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    place, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place += along * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
