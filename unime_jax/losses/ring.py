"""Ring passes over blocks of a sharded array: every device sees all rows, a block at a time.

Rows lie over `sharding.ROWS` in equal blocks, device after device. Without a mesh
(`jax.set_mesh`) there is one block, and it stays where it is.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt32

from unime_jax.sharding import ROWS, row_shards

PICKED = 1024  # rows that `pick` asks for at a time


def blockwise(function: Callable, *arrays: Any) -> Any:
    """`function` of each device's rows of `arrays`; its results are that device's rows as well.

    Raises:
      ValueError: rows that cannot be shared out equally; while tracing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*arrays)
    _check_rows({leaf.shape[0] for leaf in jax.tree.leaves(arrays)}, row_shards(mesh))
    return jax.shard_map(function, in_specs=P(ROWS), out_specs=P(ROWS))(*arrays)


def _check_rows(sizes: set[int], shards: int) -> None:
    if any(size % shards for size in sizes):
        raise ValueError(
            f"arrays of {sorted(sizes)} rows cannot be spread evenly over the {shards} row shards "
            "of the mesh (data x fsdp): make each a multiple"
        )


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

    Raises:
      ValueError: chunks whose R rows cannot be shared out equally; while tracing.
    """

    def join(*parts: Array) -> Array:
        return jnp.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return join(*parts)
    _check_rows({part.shape[1] for part in parts}, row_shards(mesh))
    return jax.shard_map(join, in_specs=P(None, ROWS), out_specs=P(ROWS))(*parts)


def visit(
    function: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    rows: Any,
    block: int,
    result: Any = None,
) -> tuple[Any, Any]:
    """(carry, result) = function(carry, part, result) for blocks of every device's rows.

    For use in `blockwise`; a carry or result that a device starts with goes through `vary`. A part
    of `block` rows goes round the devices with its result, starting on its own; then the next one
    does. So nobody ever has more than a part of another device's rows. Zeros fill the last part.

    Returns:
      The carry, and the results of this device's parts, [parts, ...].
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else row_shards(mesh)

    def hop(state: tuple[Any, Any, Any], _: None) -> tuple[tuple[Any, Any, Any], None]:
        carry, part, result = state
        carry, result = function(carry, part, result)
        part, result = _pass_on(part, shards), _pass_on(result, shards)
        return (carry, part, result), None

    def go(carry: Any, part: Any) -> tuple[Any, Any]:
        if shards == 1:
            return function(carry, part, result)
        carry, _, final = jax.lax.scan(hop, (carry, part, result), None, length=shards)[0]
        return carry, final

    return jax.lax.scan(go, carry, cut(rows, block))


def pick(rows: Int[Array, " B"], table: Float[Array, "M D"]) -> Float[Array, "B D"]:
    """`table[rows]`, for use in `blockwise`: a device's rows out of the whole table.

    Rows are asked for in parts that go round the devices: nothing as large as the table is made,
    and only its gradient on the way back.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return table[rows]
    return _pick(rows, table)


def products(
    others: Float[Array, "B D"], rows: Int[Array, " B"], table: Float[Array, "M D"]
) -> Float[Array, " B"]:
    """Products of `others` with `pick(rows, table)`, which is not made; without gradient."""
    others, table = jax.lax.stop_gradient((others, table))

    def answer(_: None, part: tuple[Array, Array], product: Array) -> tuple[None, Array]:
        others, rows = part
        here, place = _places(rows, table)
        own = jnp.einsum("bd,bd->b", others, table[place], precision=jax.lax.Precision.HIGHEST)
        return None, jnp.where(here, own, product)

    block = min(PICKED, rows.size)
    none = vary(jnp.zeros(block, table.dtype))
    return join(visit(answer, None, (others, rows), block, none)[1], rows.size)


def _places(rows: Int[Array, " B"], table: Float[Array, "M D"]) -> tuple[Array, Array]:
    """Which rows of the whole table a device has, and where, or anywhere if it has not."""
    size = table.shape[0]
    first = 0 if jax.sharding.get_abstract_mesh().empty else jax.lax.axis_index(ROWS) * size
    place = rows - first
    return (place >= 0) & (place < size), jnp.clip(place, 0, size - 1)


@jax.custom_vjp
def _pick(rows: Int[Array, " B"], table: Float[Array, "M D"]) -> Float[Array, "B D"]:
    def answer(_: None, rows: Array, picked: Array) -> tuple[None, Array]:
        here, place = _places(rows, table)
        return None, jnp.where(here[:, None], table[place], picked)

    block = min(PICKED, rows.size)
    picked = vary(jnp.zeros((block, table.shape[1]), table.dtype))
    return join(visit(answer, None, rows, block, picked)[1], rows.size)


def _pick_forward(rows, table):
    return _pick(rows, table), (rows, table)


def _pick_backward(saved, cotangent):
    rows, table = saved

    def add(d_table, part, _):
        rows, more = part
        here, place = _places(rows, table)
        place = jnp.where(here, place, table.shape[0])  # others: outside, so dropped
        return d_table.at[place].add(more, mode="drop"), None

    d_table = vary(jnp.zeros(table.shape, table.dtype))
    return None, visit(add, d_table, (rows, cotangent), min(PICKED, rows.size))[0]


_pick.defvjp(_pick_forward, _pick_backward)


def cut(rows: Any, block: int, mode: str = "constant") -> Any:
    """[M, ...] as [parts, block, ...]; zeros, or the last row by mode "edge", fill the last one."""

    def cut_array(x: Array) -> Array:
        parts = math.ceil(x.shape[0] / block)
        fill = [(0, parts * block - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
        x = jnp.pad(x, fill, mode) if fill[0][1] else x
        return x.reshape(parts, block, *x.shape[1:])

    return jax.tree.map(cut_array, rows)


def join(parts: Any, size: int) -> Any:
    """`cut` undone, for so many rows."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[:size], parts)


def vary(constants: Any) -> Any:
    """Constants marked as varying over devices, as the carry of a loop that makes them so."""
    if jax.sharding.get_abstract_mesh().empty:
        return constants
    return jax.tree.map(lambda x: jax.lax.pcast(x, ROWS, to="varying"), constants)


def _pass_on(block: Any, shards: int) -> Any:
    """Arrays of as many rows each, to the next device; those of 32 bits and flags as one message.

    Devices wait for each other at every message.
    """
    leaves, tree = jax.tree.flatten(block)
    if shards == 1 or not leaves:
        return block
    following = [(device, (device + 1) % shards) for device in range(shards)]
    joint = [x for x in leaves if _is_joint(x)]
    if len(joint) > 1:
        words = [_to_words(x) for x in joint]
        ends = list(itertools.accumulate(x.shape[1] for x in words))
        message = jax.lax.ppermute(jnp.concatenate(words, axis=1), ROWS, following)
        parts = iter(jnp.split(message, ends[:-1], axis=1))
    else:
        parts = None
    passed = [
        _from_words(next(parts), x)
        if parts is not None and _is_joint(x)
        else jax.lax.ppermute(x, ROWS, following)
        for x in leaves
    ]
    return jax.tree.unflatten(tree, passed)


def _is_joint(x: Array) -> bool:
    return x.itemsize == 4 or x.dtype == bool


def _to_words(x: Array) -> UInt32[Array, "M words"]:
    x = x.reshape(x.shape[0], -1)
    return x.astype(jnp.uint32) if x.dtype == bool else jax.lax.bitcast_convert_type(x, jnp.uint32)


def _from_words(words: UInt32[Array, "M words"], like: Array) -> Array:
    if like.dtype == bool:
        return (words != 0).reshape(like.shape)
    return jax.lax.bitcast_convert_type(words, like.dtype).reshape(like.shape)
