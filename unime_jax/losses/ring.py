"""Ring passes over the blocks of a sharded array: every device sees all rows, a block at a time.

Rows lie over `sharding.ROWS` in equal blocks, device after device. Without a mesh
(`jax.set_mesh`) there is one block, and it stays where it is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from unime_jax.sharding import ROWS, row_shards


def blockwise(function: Callable, *arrays: Any) -> Any:
    """`function` of each device's rows of `arrays`; its results are that device's rows as well.

    Raises:
      ValueError: rows that cannot be shared out equally; while tracing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*arrays)
    shards = row_shards(mesh)
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(arrays)}
    if any(size % shards for size in sizes):
        raise ValueError(
            f"arrays of {sorted(sizes)} rows cannot be spread evenly over the {shards} row shards "
            "of the mesh (data x fsdp): make each a multiple"
        )
    return jax.shard_map(function, in_specs=P(ROWS), out_specs=P(ROWS))(*arrays)


def own_rows(function: Callable, rows: Any, *whole: Any) -> Any:
    """`function` of each device's part of `rows`, and of all of the other arrays.

    Without a mesh, or where rows cannot be shared out equally, it is called once.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(x.shape[0] % row_shards(mesh) for x in jax.tree.leaves(rows)):
        return function(rows, *whole)
    specs = P(ROWS), *(P() for _ in whole)
    return jax.shard_map(function, in_specs=specs, out_specs=P(ROWS))(rows, *whole)


def beside(parts: Sequence[Array]) -> Array:
    """[C, R, ...] arrays, R spread over the devices, as one [G, ...] for `blockwise`.

    Nothing moves: a device puts its own rows side by side. Their order by number, in contrast,
    would have to be put together from all devices.
    """

    def join(*parts: Array) -> Array:
        return jnp.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])

    if jax.sharding.get_abstract_mesh().empty:
        return join(*parts)
    return jax.shard_map(join, in_specs=P(None, ROWS), out_specs=P(ROWS))(*parts)


def visit(
    function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, block: Any
) -> tuple[Any, Any]:
    """(carry, block) = function(carry, block) for every device's block, this device's own first.

    For use in `blockwise`; a carry that a device starts with goes through `vary`. The block that
    `function` returns goes on to the next device, and after the round every block is home.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else row_shards(mesh)

    def hop(both: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        carry, block = function(*both)
        return (carry, _pass_on(block, shards)), None

    return jax.lax.scan(hop, (carry, block), None, length=shards)[0]


def pick(rows: Int[Array, " B"], table: Float[Array, "M D"]) -> Float[Array, "B D"]:
    """`table[rows]`, for use in `blockwise`: a device's rows out of the whole table.

    It takes the memory of two blocks, and so does its gradient.
    """
    size = table.shape[0]
    alone = jax.sharding.get_abstract_mesh().empty
    first = jnp.int32(0) if alone else jax.lax.axis_index(ROWS) * size

    def take(picked: Array, block: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        part, first = block
        place = rows - first
        here = (place >= 0) & (place < size)
        taken = part[jnp.clip(place, 0, size - 1)]
        return jnp.where(here[:, None], taken, picked), block

    picked = vary(jnp.zeros((rows.shape[0], table.shape[1]), table.dtype))
    return visit(take, picked, (table, first))[0]


def cut(block: Any, column_block: int) -> Any:
    """[M, ...] as [blocks, column_block, ...]; zeros, masked out, fill the last block."""

    def cut_array(x: Array) -> Array:
        blocks = math.ceil(x.shape[0] / column_block)
        fill = [(0, blocks * column_block - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, fill).reshape(blocks, column_block, *x.shape[1:])

    return jax.tree.map(cut_array, block)


def vary(constants: Any) -> Any:
    """Constants marked as varying over devices, as the carry of a loop that makes them so."""
    if jax.sharding.get_abstract_mesh().empty:
        return constants
    return jax.tree.map(lambda x: jax.lax.pcast(x, ROWS, to="varying"), constants)


def _pass_on(block: Any, shards: int) -> Any:
    if shards == 1:
        return block
    following = [(device, (device + 1) % shards) for device in range(shards)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, ROWS, following), block)
