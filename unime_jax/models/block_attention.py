"""Attention of long rows by XLA: scores in memory are those of a block of queries, or near ones."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LONGEST = 2048  # tokens of a row whose scores are computed at once
BLOCK = 256  # queries of a longer row that are computed at once


def attend(
    q: Float[Array, "rows tokens heads head"],
    k: Float[Array, "rows keys kv_heads head"],
    v: Float[Array, "rows keys kv_heads head"],
    *,
    causal: bool,
    segment: Int[Array, "rows tokens"] | None,
    shared: int | None,
    length: Int[Array, " rows"] | None,
) -> Float[Array, "rows tokens heads head"]:
    """`attention.attend`, block of queries after block of queries.

    Gradients compute the scores again, so that neither pass has those of more than one block.
    """
    tokens = q.shape[1]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def of_block(block: tuple[jax.Array, jax.Array, jax.Array | None]) -> jax.Array:
        queries, index, own = block
        mask = jnp.ones((1, 1, 1, k.shape[1]), bool)
        of_key = jnp.arange(k.shape[1])
        if causal:
            mask &= index[:, None] >= of_key
        if length is not None:  # no key at all would be a mean over nothing
            mask &= (of_key < jnp.maximum(length, 1)[:, None])[:, None, None]
        if segment is not None and own is not None:
            seen = own[:, None, :, None] == segment[:, None, None, :]
            mask &= seen if shared is None else seen | (segment == shared)[:, None, None, :]
        return _masked(queries, k, v, mask)

    blocks = _blocks(q, BLOCK), _blocks(jnp.arange(tokens)[None], BLOCK)[:, 0]
    own = None if segment is None else _blocks(segment, BLOCK)
    return _joined(jax.lax.map(of_block, (*blocks, own)), tokens)


def attend_segments(
    q: Float[Array, "rows tokens heads head"],
    k: Float[Array, "rows tokens kv_heads head"],
    v: Float[Array, "rows tokens kv_heads head"],
    segment: Int[Array, "rows tokens"],
    reach: int,
) -> Float[Array, "rows tokens heads head"]:
    """Attention in both directions within segments of up to `reach` tokens that follow each other.

    Time grows with the tokens of a row times `reach`. Of longer segments, which padding has, tokens
    see a part.
    """
    if reach <= BLOCK:
        return _attend_neighbours(q, k, v, segment, reach)
    tokens = q.shape[1]
    sides = reach - 1, reach - 1 - tokens % -BLOCK
    keys, values, of_key = (
        jnp.pad(x, ((0, 0), sides, *[(0, 0)] * (x.ndim - 2))) for x in (k, v, segment)
    )
    exists = jnp.pad(jnp.ones(tokens, bool), sides)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def of_block(block: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        queries, own, start = block
        near = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=BLOCK + 2 * (reach - 1)
        )
        mask = own[:, :, None] == near(of_key, axis=1)[:, None]
        mask &= near(exists, axis=0)
        return _masked(queries, near(keys, axis=1), near(values, axis=1), mask[:, None])

    queries = _blocks(q, BLOCK)
    starts = jnp.arange(len(queries)) * BLOCK
    return _joined(jax.lax.map(of_block, (queries, _blocks(segment, BLOCK), starts)), tokens)


def _attend_neighbours(
    q: Float[Array, "rows tokens heads head"],
    k: Float[Array, "rows tokens kv_heads head"],
    v: Float[Array, "rows tokens kv_heads head"],
    segment: Int[Array, "rows tokens"],
    reach: int,
) -> Float[Array, "rows tokens heads head"]:
    """`attend_segments`, all at once, where scores of so few keys find room.

    A block of `reach` queries looks at its own keys and at the blocks before and after it.
    """
    tokens = q.shape[1]
    queries, own = _blocks(q, reach), _blocks(segment, reach)
    keys, values, of_key = (_with_neighbours(_blocks(x, reach)) for x in (k, v, segment))
    exists = _with_neighbours(_blocks(jnp.ones((1, tokens), bool), reach))
    mask = (own[..., :, None] == of_key[..., None, :]) & exists[..., None, :]
    return _joined(jax.vmap(_masked)(queries, keys, values, mask[:, :, None]), tokens)


def _masked(
    q: Float[Array, "rows queries heads head"],
    k: Float[Array, "rows keys kv_heads head"],
    v: Float[Array, "rows keys kv_heads head"],
    mask: Bool[Array, "_ 1 _ keys"],
) -> Float[Array, "rows queries heads head"]:
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """[rows, tokens, ...] to [blocks, rows, block, ...], the last block filled up with zeros."""
    rows, tokens, *others = x.shape
    x = jnp.pad(x, ((0, 0), (0, -tokens % block), *[(0, 0)] * len(others)))
    return jnp.moveaxis(x.reshape(rows, -1, block, *others), 1, 0)


def _joined(blocks: jax.Array, tokens: int) -> jax.Array:
    """The rows of `_blocks`, without what has filled the last block up."""
    rows = jnp.moveaxis(blocks, 0, 1)
    return rows.reshape(len(rows), -1, *rows.shape[3:])[:, :tokens]


def _with_neighbours(blocks: jax.Array) -> jax.Array:
    """Each block between the one before and the one after it, zeros at the ends."""
    nothing = jnp.zeros_like(blocks[:1])
    before = jnp.concatenate([nothing, blocks[:-1]])
    after = jnp.concatenate([blocks[1:], nothing])
    return jnp.concatenate([before, blocks, after], axis=2)
