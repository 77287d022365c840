"""Exact search of sign bits on a mesh: the entries with the fewest bits unlike a query's.

Distances are whole numbers, so that the devices' order is the exact one; of equal distances the
lower number comes first, whatever the mesh and the blocks.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Int32, UInt8

from unime_jax import sharding
from unime_jax.evaluation.mining.top_k import NOBODY, columns_of, largest, spread

FAR = np.iinfo(np.int32).max  # distance of an entry that there is not
BITS = 32  # that are compared at once

Bits = Callable[[np.ndarray], UInt8[np.ndarray, "n bytes"]]  # of entries, by number


class Nearest(NamedTuple):
    """The smallest distances of each device's part of the entries so far, with their numbers."""

    distance: Int32[jax.Array, "devices queries k"]
    number: Int32[jax.Array, "devices queries k"]


def search(
    queries: UInt8[np.ndarray, "queries bytes"],
    number: Int32[np.ndarray, " M"],
    bits: Bits,
    count: int,
    *,
    mesh: Mesh,
    columns: int,
) -> tuple[Int32[np.ndarray, "queries count"], Int32[np.ndarray, "queries count"]]:
    """Numbers and distances of the nearest entries of each query, the nearest first; -1: none.

    Args:
      queries: signs, eight to a byte.
      number: of the entries that are searched, ascending.
      bits: reads those of some numbers, packed as the queries are.
      mesh: of this process's own devices.
      columns: entries of a block, over all devices; at most 2**26 over the bits of an entry.
    """
    columns = columns_of(mesh, min(columns, max(1, len(number))))
    rows = 2 ** int(np.ceil(np.log2(max(1, len(queries)))))  # so that few programs are compiled
    padded = np.zeros((rows, queries.shape[1]), np.uint8)
    padded[: len(queries)] = queries
    on_devices = jax.device_put(_words(padded), sharding.replicated(mesh))
    shape, place = (mesh.size, rows, count), spread(mesh)
    best = Nearest(
        jax.device_put(np.full(shape, FAR, np.int32), place),
        jax.device_put(np.full(shape, NOBODY, np.int32), place),
    )
    update = _updater(mesh)
    for start in range(0, len(number), columns):
        own = number[start : start + columns]
        block = _words(bits(own))
        if len(own) < columns:
            block = np.pad(block, ((0, columns - len(own)), (0, 0)))
            own = np.pad(own, (0, columns - len(own)), constant_values=NOBODY)
        parts = jax.device_put((block, own), place)
        jax.block_until_ready(best)  # one block is under way while the next is read
        best = update(best, on_devices, *parts)
    distance, nearest = (
        np.moveaxis(np.asarray(part)[:, : len(queries)], 0, 1).reshape(len(queries), -1)
        for part in best
    )
    order = np.lexsort((nearest, distance), axis=1)[:, :count]
    return np.take_along_axis(nearest, order, axis=1), np.take_along_axis(distance, order, axis=1)


def _words(bits: UInt8[np.ndarray, "n bytes"]) -> np.ndarray:
    """Bytes as uint32 [n, words], the last filled up with zeros."""
    filled = np.pad(bits, ((0, 0), (0, -bits.shape[1] % (BITS // 8))))
    return np.ascontiguousarray(filled).view(np.uint32)


@functools.lru_cache(maxsize=4)
def _updater(mesh: Mesh):
    """A jitted function: (nearest, queries, block, number) to `Nearest` with a block's entries."""
    part, whole = P(sharding.AXES), P()
    state: Any = Nearest(part, part)  # type: ignore[arg-type]

    @functools.partial(jax.jit, donate_argnums=0)
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(state, whole, part, part), out_specs=state
    )
    def update(best: Nearest, queries, block, number) -> Nearest:
        unlike = jax.lax.population_count(queries[:, None, :] ^ block[None, :, :])
        distance = jnp.sum(unlike.astype(jnp.int32), axis=-1)
        columns, most = len(block), block.shape[1] * BITS + 1  # which no distance is
        distance = jnp.where((number >= 0)[None], distance, most)
        # Of equal distances the first column: a key for both, so that no two are equal.
        key, _ = largest(
            -(distance * columns + jnp.arange(columns, dtype=jnp.int32)),
            min(best.distance.shape[-1], columns),
            "exact",
        )
        distance, column = -key // columns, -key % columns
        numbers = jnp.where(distance < most, number[column], NOBODY)
        distance = jnp.where(distance < most, distance, FAR)
        # Entries come in the order of their numbers, and top_k takes the first of equal ones.
        distance = jnp.concatenate([best.distance[0], distance], axis=1)
        numbers = jnp.concatenate([best.number[0], numbers], axis=1)
        nearest, place = jax.lax.top_k(-distance, best.distance.shape[-1])
        return Nearest(-nearest[None], jnp.take_along_axis(numbers, place, axis=1)[None])

    return update
